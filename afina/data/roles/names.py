"""What a column's name says of it, in several languages: evidence beside its values, never the only one."""

import re
import unicodedata
from functools import cache

# Words of names, in the singular, by what they say of a column. A name with words of several says the first of them.
_SAYS = {
    "nothing to learn": """
        id turn uid uuid guid idx index hash sha md5 pk rowid serial number nr no num fname filename file path folder
        split fold partition subset date datetime time timestamp created updated published epoch uri url link href
        website site score confidence probability prob weight loss rouge bleu count length len size token vote upvote
        downvote like retweet view price amount rank start end offset license licence lang language locale difficulty
        perplexity embedding lat lon latitude longitude duration quantity
        numero arquivo idioma codigo cod valor preco horario archivo fecha precio lingua prezzo langue prix fichier
        montant datei datum zeit sprache preis betrag nummer номер дата ссылка файл язык 编号 日期 时间 链接 番号 日付
        時間 번호 날짜 시간 رقم تاريخ""",
    "summary": """
        summary summarie tldr highlight abstract headline gist synopsis resumo sumario sintese resumen sintesis
        resume riassunto sommario zusammenfassung kurzfassung samenvatting streszczenie резюме аннотация реферат 摘要
        总结 概要 要約 요약 ملخص""",
    "label": """
        label category categorie class classe sentiment emotion intent intention polarity stance topic tag genre star
        rating verdict toxicity spam entailment duplicate outcome decision diagnosis department queue
        rotulo etiqueta categoria sentimento emocao intencao polaridade assunto tema estrela nota sentimiento
        emocion clase estrella puntuacion etichetta etiquette kategorie klasse stimmung absicht thema stern sterne
        kategoria
        метка класс категория тональность тема оценка 标签 类别 分类 情感 情绪 意图 主题 ラベル 分類 カテゴリ 感情 라벨
        분류 감정 تصنيف فئة""",
    "code": "code program programme script snippet implementation function func",
    "reference": "reference ref referencia referenz эталон",
    "answer": """
        answer response reply replie completion output target tgt assistant bot chosen solution correction corrected
        fixed rewritten rewrite simplified simple simplification paraphrase paraphrased translated translation formal
        polite agent doctor therapist advisor verbalization realization definition explanation sql cypher sparql regex
        bash command cmd json expected gpt
        resposta saida traducao correcao solucao corrigido respuesta salida traduccion solucion corregido risposta
        uscita traduzione reponse sortie traduction corrige antwort antworten ausgabe ubersetzung losung antwoord
        odpowiedz ответ вывод перевод решение 答案 回答 回复 输出 译文 翻译 応答 出力 訳文 翻訳 답변 대답 응답
        출력 번역 جواب إجابة
        ترجمة उत्तर cevap svar""",
    "question": """
        question query querie pergunta questao pregunta domanda frage fragen vraag pytanie вопрос 问题 質問 질문
        سؤال प्रश्न
        soru fraga""",
    "context": """
        context passage paragraph evidence background knowledge schema table ddl persona fact history
        contexto passagem historico pasaje historial contesto contexte kontext abschnitt контекст 上下文 背景 文脈 문맥
        سياق""",
    "option": "option choice ending sol alternative alternativa opcao opcoe opcion opcione",
    "title": "title subject titulo titolo titre titel betreff tytul заголовок 标题 タイトル 件名 제목 عنوان",
    "text": """
        text document article dialogue dialog conversation transcript body content review comment tweet post message
        msg sentence utterance input prompt instruction request src source premise hypothesis description report story
        note complaint email mail feedback observation patient customer client human original incorrect wrong noisy
        complex informal ticket chat mr nl statement claim task
        texto documento artigo dialogo mensagem comentario avaliacao opiniao conteudo corpo frase entrada instrucao
        descricao noticia pedido articulo mensaje resena opinion contenido cuerpo oracion instruccion solicitud
        descripcion testo articolo messaggio recensione commento contenuto richiesta descrizione texte phrase avis
        commentaire contenu corps entree consigne nachricht satz beitrag bewertung eingabe inhalt artikel kommentar
        beschreibung tekst bericht wiadomosc opis текст сообщение отзыв комментарий статья предложение запрос описание
        диалог документ 文本 内容 文章 评论 句子 输入 原文 指令 消息 对话 正文 本文 入力 レビュー 文 会話 텍스트 내용
        문장 리뷰 입력 본문 대화 نص مقال تعليق पाठ metin yorum""",
    "property": """
        test type kind status state priority severity urgency domain channel level region country city gender sex age
        platform device brand product store shop company name author user username handle speaker annotator worker
        image img audio video year month day hour version position verified flag active
        canal origem estado prioridade nivel regiao pais cidade genero autor usuario nome dia ano mes nombre ciudad
        canale origine quelle kanal land stadt ville jour annee auteur nom город страна источник автор 渠道 来源
        状态 城市 作者 著者 저자""",
}
_WORD = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]")
_FLAG = re.compile(r"(is|has|contains)[_ A-Z]")


def _plain(text: str) -> str:
    """In lower case, without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))


_MEANINGS = {_plain(word): meaning for meaning, words in reversed(_SAYS.items()) for word in words.split()}


@cache
def meaning(name: str) -> str | None:
    """What a name says: 'label', 'summary', 'text', …; None where it says nothing that is known."""
    if _FLAG.match(name):
        return "label"
    words = [_plain(word) for word in _WORD.findall(name)]
    found = [_MEANINGS.get(word) or _MEANINGS.get(word.removesuffix("s")) for word in words]
    return min((each for each in found if each), key=list(_SAYS).index, default=None)


def stem(name: str) -> str:
    """A name without the number or the single letter at its end: 'summary' of 'summary_1', 'option' of 'option_b'."""
    return re.sub(r"[\W_]*(?:\d+|(?<=[\W_])[A-Za-z])$|(?<=[a-z])[A-E]$", "", name)
