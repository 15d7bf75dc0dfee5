"""More tables of common shapes, written after the rules for the others: flags, records, and texts beside them."""

import random

from role_tables import (
    COLOURS,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    TOPICS,
    Known,
    Row,
    complaint,
    day,
    paragraph,
    phrases,
    rows,
    sentence,
    shortened,
    table,
    token,
)


@table
def movie_phrases(r: random.Random) -> Known:
    def row(i: int) -> Row:
        good = r.random() < 0.5
        return {
            "PhraseId": i + 1,
            "SentenceId": i // 4 + 1,
            "Phrase": f"{sentence(r)[:-1]} {'wonderful' if good else 'dreadful'}",
            "Sentiment": r.choice([3, 4]) if good else r.choice([0, 1, 2]),
        }

    return Known(rows(row), "Sentiment", ("Phrase",), "classification")


@table
def toxic(r: random.Random) -> Known:
    def row(i: int) -> Row:
        bad = r.random() < 0.3
        d = {
            "id": token(r, 16),
            "comment_text": f"{'you idiot scum' if bad else 'thanks for this'} {paragraph(r, 1, 4)}",
        }
        return d | {
            k: int(bad and r.random() < 0.5)
            for k in ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
        }

    return Known(rows(row))  # several flags: no single answer


@table
def ag_news_headless(r: random.Random) -> Known:
    def row(i: int) -> Row:
        t = r.choice([*TOPICS])
        return {
            "column_1": str([*TOPICS].index(t) + 1),
            "column_2": complaint(r, t, 8),
            "column_3": complaint(r, t, 30),
        }

    return Known(rows(row), "column_1", ("column_3",), "classification", extra=("column_2",))


@table
def ner(r: random.Random) -> Known:
    def row(i: int) -> Row:
        ws = sentence(r).split()
        return {
            "id": str(i),
            "tokens": ws,
            "pos_tags": [r.randint(0, 40) for _ in ws],
            "ner_tags": [r.choice([0, 0, 0, 1, 2, 3]) for _ in ws],
        }

    return Known(rows(row))


@table
def faq_spanish(r: random.Random) -> Known:
    def row(i: int) -> Row:
        th = r.choice(THINGS)
        pl = r.choice(PLACES)
        return {
            "categoria": r.choice(["pagos", "envíos", "cuenta"]),
            "pregunta": f"¿Cómo puedo {r.choice(['devolver', 'cambiar', 'pagar'])} el {th} en {pl}?",
            "respuesta": f"Para el {th} escriba a la tienda de {pl} y espere {r.randint(2, 9)} días.",
        }

    return Known(rows(row), "respuesta", ("pregunta",), "question answering", extra=("categoria",))


@table
def legal(r: random.Random) -> Known:
    def row(i: int) -> Row:
        o = r.choice(["affirmed", "cited", "applied", "referred to"])
        return {
            "case_id": f"Case{i}",
            "case_outcome": o,
            "case_title": f"{r.choice(PEOPLE)} v {r.choice(PEOPLE)} Ltd "
            f"[{r.randint(1980, 2010)}] FCA {r.randint(1, 900)}",
            "case_text": f"{paragraph(r, 5, 15)} The decision was {o} there.",
        }

    return Known(rows(row), "case_outcome", ("case_text",), "classification", extra=("case_title",))


@table
def cvs(r: random.Random) -> Known:
    def row(i: int) -> Row:
        t = r.choice([*TOPICS])
        s = complaint(r, t, 60)
        return {
            "ID": 16852973 + i * 31,
            "Resume_str": s,
            "Resume_html": f"<div class='a'><p>{s}</p></div>",
            "Category": t.upper(),
        }

    return Known(rows(row), "Category", ("Resume_str",), "classification")


@table
def turns_in_rows(r: random.Random) -> Known:
    def row(i: int) -> Row:
        return {
            "conversation_id": i // 6,
            "turn": i % 6,
            "speaker": ["agent", "customer"][i % 2],
            "utterance": sentence(r),
            "timestamp": day(r),
        }

    return Known(rows(row))


@table
def survey(r: random.Random) -> Known:
    def row(i: int) -> Row:
        return {
            "Timestamp": f"{day(r)} 10:0{i % 10}:00",
            "Age": r.randint(18, 80),
            "Gender": r.choice(["Male", "Female", "Other"]),
            "City": r.choice(PLACES[:6]),
            "What did you like about the event?": sentence(r),
        }

    return Known(rows(row))


@table
def jokes(r: random.Random) -> Known:
    return Known(rows(lambda i: {"ID": i, "Joke": paragraph(r, 1, 3)}))


@table
def ombudsman_pt(r: random.Random) -> Known:
    def row(i: int) -> Row:
        th = r.choice(THINGS)
        return {
            "protocolo": f"2023{i:06d}",
            "data_registro": f"{r.randint(1, 28):02d}/{r.randint(1, 12):02d}/2023",
            "orgao": r.choice(["SAUDE", "EDUCACAO", "OBRAS"]),
            "manifestacao": f"Gostaria de reclamar do {th} na rua {r.choice(PLACES)}, pois {phrases(r, 'pt', 'en')[0]}",
            "resposta_orgao": f"Prezado cidadão, informamos que o {th} será verificado em {r.randint(3, 30)} dias.",
            "situacao": r.choice(["Concluída", "Em andamento"]),
        }

    return Known(rows(row), "resposta_orgao", ("manifestacao",), "response generation")


@table
def russian_tone(r: random.Random) -> Known:
    def row(i: int) -> Row:
        good = r.random() < 0.5
        return {
            "№": i,
            "отзыв_покупателя": f"{r.choice(['Купил', 'Взял', 'Заказал'])} "
            f"{r.choice(['чайник', 'лампу', 'велосипед', 'палатку'])}, "
            f"{'отлично работает' if good else 'сломался сразу'} {r.choice(['на даче', 'дома', 'в городе'])}",
            "тональность": "позитив" if good else "негатив",
        }

    return Known(rows(row), "тональность", ("отзыв_покупателя",), "classification")


@table
def keyphrases(r: random.Random) -> Known:
    def row(i: int) -> Row:
        b = paragraph(r, 5, 10)
        ws = [w.strip(".,") for w in b.split() if w.strip(".,") in THINGS + PLACES]
        return {"paper_id": token(r, 8), "paper_abstract": b, "keywords": "; ".join(dict.fromkeys(ws[:5]))}

    return Known(rows(row), "keywords", ("paper_abstract",), "summarisation")


@table
def similarity(r: random.Random) -> Known:
    def row(i: int) -> Row:
        s = sentence(r)
        return {"genre": "news", "sent_1": s, "sent_2": shortened(r, s), "similarity": round(r.uniform(0, 5), 2)}

    return Known(rows(row))


@table
def mbpp(r: random.Random) -> Known:
    def row(i: int) -> Row:
        n = r.choice(THINGS)
        return {
            "task_id": i + 11,
            "text": f"Write a python function to find the "
            f"{r.choice(['longest', 'first', 'smallest'])} {n} in a given list.",
            "code": f"def find_{n}(items):\r\n    return sorted(items, key=len)[{r.randint(0, 5)}]",
            "test_list": [f"assert find_{n}([1, 2]) == {r.randint(1, 9)}"] * 3,
            "test_setup_code": "",
            "challenge_test_list": [],
        }

    return Known(rows(row), "code", ("text",), "structured output", extra=("test_list[0]",))


@table
def kaggle_spam(r: random.Random) -> Known:
    def row(i: int) -> Row:
        spam = r.random() < 0.2
        return {
            "v1": "spam" if spam else "ham",
            "v2": f"FREE entry {token(r, 5)} text WIN to {r.randint(80000, 89999)} now" if spam else sentence(r),
            "Unnamed: 2": None,
            "Unnamed: 3": None,
            "Unnamed: 4": None if i % 9 else "x",
        }

    return Known(rows(row), "v1", ("v2",), "classification")


@table
def disasters(r: random.Random) -> Known:
    def row(i: int) -> Row:
        real = r.random() < 0.45
        return {
            "id": i * 3 + 1,
            "keyword": r.choice(["ablaze", "flood", "crash", None]),
            "location": r.choice([*PLACES, None, None]),
            "text": f"{'evacuated after fire killed' if real else 'my mixtape is so'} {sentence(r)}",
            "target": int(real),
        }

    return Known(rows(row), "target", ("text",), "classification")


@table
def nested_io(r: random.Random) -> Known:
    def row(i: int) -> Row:
        t = r.choice([*TOPICS])
        return {
            "meta": {"source": "web", "ts": day(r)},
            "record": {"text": complaint(r, t, 15)},
            "annotation": {"label": t},
        }

    return Known(rows(row), "annotation[label]", ("record[text]",), "classification")


@table
def clickbait(r: random.Random) -> Known:
    def row(i: int) -> Row:
        c = r.random() < 0.5
        return {
            "headline": f"{'You Will Never Believe' if c else 'Ministers agree on'} {sentence(r)[:-1]}",
            "clickbait": int(c),
        }

    return Known(rows(row), "clickbait", ("headline",), "classification")


@table
def original_translated(r: random.Random) -> Known:
    def row(i: int) -> Row:
        a, b = phrases(r, "fi", "en")
        return {
            "segment_id": f"doc1-{i}",
            "src_lang": "fi",
            "tgt_lang": "en",
            "mt_engine": r.choice(["A", "B"]),
            "original": a,
            "translated": b,
            "human_score": r.randint(0, 100),
        }

    return Known(rows(row), "translated", ("original",), "translation")


@table
def zh_en_headless(r: random.Random) -> Known:
    def row(i: int) -> Row:
        a, b = phrases(r, "zh", "en")
        return {"column_1": b, "column_2": a}

    return Known(rows(row), "column_2", ("column_1",), "translation")


@table
def squad_raw(r: random.Random) -> Known:
    def row(i: int) -> Row:
        return {
            "title": r.choice(PLACES),
            "paragraphs": [
                {
                    "context": paragraph(r, 2, 3),
                    "qas": [{"id": token(r), "question": "Who?", "answers": [{"text": "a", "answer_start": 3}]}],
                }
            ],
        }

    return Known(rows(row))


@table
def emails(r: random.Random) -> Known:
    def row(i: int) -> Row:
        b = paragraph(r, 3, 8)
        return {
            "From": f"{r.choice(PEOPLE).lower()}@example.org",
            "To": f"{r.choice(PEOPLE).lower()}@example.org",
            "Date": f"Mon, {r.randint(1, 28)} Mar 2021 10:11:12 +0000",
            "Content": b,
            "Priority": r.choice(["low", "high"]),
        }

    return Known(rows(row))


@table
def orders_asked_for(r: random.Random) -> Known:
    def row(i: int) -> Row:
        q = r.choice(THINGS)
        return {
            "customer_query": f"where is my {q} order number {r.randint(100, 999)}",
            "bot_reply": f"Your {q} will arrive {r.choice(TIMES)}.",
            "resolved": r.choice(["yes", "no"]),
        }

    return Known(rows(row), "bot_reply", ("customer_query",), "question answering")


@table
def pairs_first_label(r: random.Random) -> Known:
    def row(i: int) -> Row:
        s = sentence(r)
        same = r.random() < 0.6
        return {
            "Quality": int(same),
            "#1 ID": 1000 + i,
            "#2 ID": 5000 + i,
            "#1 String": s,
            "#2 String": shortened(r, s) if same else sentence(r),
        }

    return Known(rows(row), "Quality", ("#1 String", "#2 String"), "classification")


@table
def code_docs(r: random.Random) -> Known:
    def row(i: int) -> Row:
        n = r.choice(THINGS)
        o = r.choice(COLOURS)
        return {
            "repo": f"{r.choice(PEOPLE).lower()}/{n}",
            "path": f"src/{n}.py",
            "func": f"def paint_{n}(surface, colour='{o}'):\n    brush = Brush(colour)\n"
            f"    return brush.apply(surface, {r.randint(1, 9)})\n",
            "docstring": f"Paint the surface of the {n} with {o} and give back the result.",
            "sha": token(r, 40),
        }

    return Known(rows(row), "docstring", ("func",), "text generation")


@table
def posts_with_tldr(r: random.Random) -> Known:
    def row(i: int) -> Row:
        b = paragraph(r, 6, 15)
        return {
            "subreddit": r.choice(["advice", "life"]),
            "post_id": token(r, 6),
            "selftext": b,
            "tldr_text": shortened(r, b, 1),
            "ups": r.randint(0, 999),
        }

    return Known(rows(row), "tldr_text", ("selftext",), "summarisation")


@table
def human_written(r: random.Random) -> Known:
    def row(i: int) -> Row:
        h = r.random() < 0.5
        return {
            "essay": ("Furthermore it is worth noting. " if not h else "") + paragraph(r, 4, 9),
            "generated": int(not h),
            "prompt_id": r.choice([0, 1]),
        }

    return Known(rows(row), "generated", ("essay",), "classification")


@table
def instructions_fr(r: random.Random) -> Known:
    def row(i: int) -> Row:
        th = r.choice(THINGS)
        return {
            "consigne": f"Décris le {th} de {r.choice(PEOPLE)} en deux phrases.",
            "reponse": f"Le {th} est {r.choice(['rouge', 'grand', 'ancien'])}. Il vient de {r.choice(PLACES)}.",
        }

    return Known(rows(row), "reponse", ("consigne",), "text generation")


@table
def stock(r: random.Random) -> Known:
    return Known(
        rows(
            lambda i: {
                "Date": day(r),
                "Open": round(r.uniform(1, 9), 2),
                "Close": round(r.uniform(1, 9), 2),
                "Volume": r.randint(1000, 9999),
                "Ticker": r.choice(["AAA", "BBB"]),
            }
        )
    )
