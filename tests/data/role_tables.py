"""Tables of many shapes whose roles are known: names of columns as they are common, rows made here by chance."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
ROWS = 60


@dataclass(frozen=True)
class Known:
    """What is right for a table: `answer` from all of `inputs` (and perhaps from `extra`); no answer: nothing is to be
    suggested."""

    rows: list[Row]
    answer: str | None = None
    inputs: tuple[str, ...] = ()
    task: str = ""
    extra: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


TABLES: dict[str, Callable[[random.Random], Known]] = {}


def table(make: Callable[[random.Random], Known]) -> Callable[[random.Random], Known]:
    TABLES[make.__name__] = make
    return make


def listed(words: str) -> list[str]:
    return words.split()


THINGS = listed(
    "kettle lamp bicycle tent rake piano mirror ladder drill sofa camera printer scooter blender jacket "
    "suitcase keyboard helmet telescope violin freezer stroller backpack monitor heater trampoline "
    "toaster carpet guitar saw"
)
PLACES = listed(
    "Porto Lyon Gdansk Turin Ghent Bergen Faro Cork Malmo Graz Brno Split Tartu Vigo Bath Aarhus Delft Lucca"
)
PEOPLE = listed(
    "Anna Bruno Carla Dmitri Elena Farid Greta Hugo Ines Jonas Karim Lucia Marek Nadia Oscar Paula Rosa Samir"
)
DOINGS = listed(
    "repaired sold borrowed painted delivered cleaned returned photographed measured rented inspected hid "
    "ordered dropped wrapped tested carried described"
)
TIMES = [
    "yesterday",
    "last week",
    "before lunch",
    "in the morning",
    "on Friday",
    "after the storm",
    "in spring",
    "at noon",
    "twice",
    "at night",
]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "orange", "purple"]


def sentence(r: random.Random) -> str:
    shape = r.randrange(4)
    who, thing, place, doing, time = (r.choice(each) for each in (PEOPLE, THINGS, PLACES, DOINGS, TIMES))
    return (
        f"{who} {doing} the {r.choice(COLOURS)} {thing} in {place} {time}.",
        f"The {thing} that {who} {doing} {time} came from {place}.",
        f"{time.capitalize()}, {who} {doing} a {thing} for {r.choice(PEOPLE)} near {place}.",
        f"Nobody in {place} knew why {who} had {doing} the {thing} {time}.",
    )[shape]


def paragraph(r: random.Random, low: int, high: int) -> str:
    return " ".join(sentence(r) for _ in range(r.randint(low, high)))


def shortened(r: random.Random, text: str, sentences: int = 1) -> str:
    """Some sentences of a text, with a word or two left out."""
    parts = r.sample([part for part in text.split(". ") if part], k=sentences)
    return ". ".join(" ".join(w for w in part.rstrip(".").split() if r.random() > 0.15) for part in parts) + "."


def token(r: random.Random, length: int = 10) -> str:
    return "".join(r.choices("abcdefghijkmnpqrstuvwxyz0123456789", k=length))


def day(r: random.Random) -> str:
    return f"20{r.randint(15, 24)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"


# One phrase in several languages, word by word: each entry is a slot's fillers.
PHRASES: dict[str, list[list[str]]] = {
    "en": [
        ["The neighbour", "My sister", "The old baker", "A young doctor", "The teacher", "Our guest"],
        ["bought", "forgot", "was looking for", "wanted to sell", "found"],
        [
            "the bread",
            "an umbrella",
            "the blue boat",
            "two tickets for the train",
            "the key of the house",
            "the letters",
        ],
        ["in the market", "near the station", "on the beach", "at school", "in the kitchen of the hotel"],
        ["this morning.", "because it was raining.", "and nobody noticed.", "before the holidays.", "again!"],
    ],
    "pt": [
        ["O vizinho", "A minha irmã", "O velho padeiro", "Uma jovem médica", "A professora", "O nosso hóspede"],
        ["comprou", "esqueceu", "procurava", "queria vender", "encontrou"],
        ["o pão", "um guarda-chuva", "o barco azul", "dois bilhetes para o comboio", "a chave da casa", "as cartas"],
        ["no mercado", "perto da estação", "na praia", "na escola", "na cozinha do hotel"],
        ["esta manhã.", "porque estava a chover.", "e ninguém reparou.", "antes das férias.", "outra vez!"],
    ],
    "de": [
        ["Der Nachbar", "Meine Schwester", "Der alte Bäcker", "Eine junge Ärztin", "Die Lehrerin", "Unser Gast"],
        ["kaufte", "vergaß", "suchte", "wollte verkaufen:", "fand"],
        [
            "das Brot",
            "einen Schirm",
            "das blaue Boot",
            "zwei Karten für den Zug",
            "den Schlüssel des Hauses",
            "die Briefe",
        ],
        ["auf dem Markt", "beim Bahnhof", "am Strand", "in der Schule", "in der Küche des Hotels"],
        ["heute Morgen.", "weil es regnete.", "und niemand merkte es.", "vor den Ferien.", "schon wieder!"],
    ],
    "fi": [
        ["Naapuri", "Siskoni", "Vanha leipuri", "Nuori lääkäri", "Opettaja", "Vieraamme"],
        ["osti", "unohti", "etsi", "halusi myydä", "löysi"],
        ["leivän", "sateenvarjon", "sinisen veneen", "kaksi junalippua", "talon avaimen", "kirjeet"],
        ["torilla", "aseman lähellä", "rannalla", "koulussa", "hotellin keittiössä"],
        ["tänä aamuna.", "koska satoi.", "eikä kukaan huomannut.", "ennen lomaa.", "taas!"],
    ],
    "zh": [
        ["邻居", "我的姐姐", "老面包师", "一位年轻的医生", "老师", "我们的客人"],
        ["买了", "忘了", "在找", "想卖", "找到了"],
        ["面包", "一把雨伞", "蓝色的船", "两张火车票", "房子的钥匙", "那些信"],
        ["在市场", "在车站附近", "在海滩上", "在学校", "在酒店的厨房里"],
        ["今天早上。", "因为下雨了。", "没有人注意到。", "在假期之前。", "又一次！"],
    ],
}


def phrases(r: random.Random, one: str, other: str) -> tuple[str, str]:
    """The same said in two languages: one to three sentences."""
    said: tuple[list[str], list[str]] = [], []
    for _ in range(r.randint(1, 3)):
        at = [r.randrange(len(slot)) for slot in PHRASES["en"]]
        for own, language in zip(said, (one, other), strict=True):
            words = [slot[i] for slot, i in zip(PHRASES[language], at, strict=True)]
            own.append(("" if language == "zh" else " ").join(words))
    return " ".join(said[0]), " ".join(said[1])


TOPICS = {
    "billing": "invoice charged refund payment card twice amount euros receipt bank",
    "delivery": "parcel courier late address tracking arrived box driver street shipment",
    "account": "password login username locked email profile verify code settings access",
    "quality": "broken scratched noisy stopped working defect smell cracked loose weak",
}


def complaint(r: random.Random, topic: str, words: int = 14) -> str:
    own, common = (
        TOPICS[topic].split(),
        [
            "my",
            "the",
            "again",
            "still",
            "please",
            "I",
            "it",
            "was",
            "with",
            "since",
            "about",
            "and",
            "not",
            "help",
            "order",
        ],
    )
    return " ".join(r.choice(own if r.random() < 0.3 else common) for _ in range(words)).capitalize() + "."


def rows(make: Callable[[int], Row], count: int = ROWS) -> list[Row]:
    return [make(i) for i in range(count)]


@table
def dialogue_summaries(r: random.Random) -> Known:
    def row(i: int) -> Row:
        turns = [f"#Person{1 + k % 2}#: {sentence(r)}" for k in range(r.randint(6, 14))]
        said = " ".join(turn.split(": ", 1)[1] for turn in turns)
        found: Row = {"fname": f"test_{i}", "dialogue": "\n".join(turns)}
        for k in (1, 2, 3):
            found |= {f"summary{k}": f"#Person1# says: {shortened(r, said, 2)}"}
            found |= {f"topic{k}": f"{r.choice(THINGS)} {r.choice(('sale', 'visit', 'talk', 'trip', 'repair'))}"}
        return found

    return Known(rows(row), "summary1", ("dialogue",), "summarisation", references=("summary1", "summary2", "summary3"))


@table
def headless_spam(r: random.Random) -> Known:
    def row(i: int) -> Row:
        spam = r.random() < 0.3
        text = (
            f"WIN a free {r.choice(THINGS)} now! Call {r.randint(1000, 9999)} to claim your prize"
            if spam
            else sentence(r)
        )
        return {"column_1": "spam" if spam else "ham", "column_2": text}

    return Known(rows(row), "column_1", ("column_2",), "classification")


@table
def nested_sql(r: random.Random) -> Known:
    def row(i: int) -> Row:
        kind, column = r.choice(["singer", "boat", "student", "museum"]), r.choice(["age", "name", "city", "weight"])
        value = r.choice(PLACES)
        return {
            "id": f"q{i:05d}",
            "data": {
                "question": f"What is the {column} of each {kind} from {value}?",
                "schema": {"table": kind, "columns": ["id", column, "country"]},
                "sql": {"query": f"SELECT {column} FROM {kind} WHERE country = '{value}'"},
            },
        }

    return Known(rows(row), "data[sql][query]", ("data[question]", "data[schema]"), "structured output")


@table
def headless_parallel_with_attribution(r: random.Random) -> Known:
    def row(i: int) -> Row:
        one, other = phrases(r, "en", "pt")
        names = r.sample(["CK", "alexmarcelo", "bill", "Guybrush88", "carlos", "piterkeo", "una_sousa"], 2)
        note = (
            f"CC-BY 2.0 (France) Attribution: tatoeba.org #{r.randint(100_000, 999_999)} "
            f"({names[0]}) & #{i} ({names[1]})"
        )
        return {"column_1": one, "column_2": other, "column_3": note}

    return Known(rows(row), "column_2", ("column_1",), "translation")


@table
def headless_polarity(r: random.Random) -> Known:
    def row(i: int) -> Row:
        good = r.random() < 0.5
        word = r.choice(
            ["love", "great", "happy", "best", "yay", "thanks"]
            if good
            else ["sad", "hate", "awful", "sick", "miss", "ugh"]
        )
        return {
            "column_1": "4" if good else "0",
            "column_2": str(1467810369 + i * 977),
            "column_3": f"Mon Apr {r.randint(1, 28):02d} 22:{r.randint(10, 59)}:45 PDT 2009",
            "column_4": "NO_QUERY",
            "column_5": r.choice(PEOPLE).lower() + token(r, 4),
            "column_6": f"@{r.choice(PEOPLE).lower()} {word} {sentence(r)}",
        }

    return Known(rows(row), "column_1", ("column_6",), "classification")


@table
def questions_on_passages_in_portuguese(r: random.Random) -> Known:
    def row(i: int) -> Row:
        facts = [(r.choice(PEOPLE), r.choice(THINGS), r.choice(PLACES)) for _ in range(6)]
        text = " ".join(f"{who} comprou um objeto do tipo {what} na cidade de {where}." for who, what, where in facts)
        who, what, where = r.choice(facts)
        asked, answer = r.choice(
            [(f"Onde {who} comprou {what}?", f"na cidade de {where}"), (f"Quem comprou {what} em {where}?", who)]
        )
        return {"id": token(r), "titulo": where, "contexto": text, "pergunta": asked, "resposta": answer}

    return Known(rows(row), "resposta", ("contexto", "pergunta"), "question answering", extra=("titulo",))


@table
def inference(r: random.Random) -> Known:
    def row(i: int) -> Row:
        premise, label = sentence(r), r.choice(["entailment", "neutral", "contradiction"])
        hypothesis = {
            "entailment": shortened(r, premise), "neutral": f"{premise[:-1]} with {r.choice(PEOPLE)}.",
            "contradiction": sentence(r),
        }[label]  # fmt: skip
        return {
            "pairID": f"{i}{'enc'[i % 3]}", "premise": premise, "hypothesis": hypothesis, "gold_label": label,
            "annotator_count": r.randint(1, 5),
        }  # fmt: skip

    return Known(rows(row), "gold_label", ("premise", "hypothesis"), "classification")


@table
def duplicate_questions(r: random.Random) -> Known:
    def row(i: int) -> Row:
        who, thing, place = r.choice(PEOPLE), r.choice(THINGS), r.choice(PLACES)
        same = r.random() < 0.4
        one = f"Where can {who} buy a {thing} in {place}?"
        other = (
            f"What shop of {place} sells a {thing} to {who}?"
            if same
            else f"How do I repair the {r.choice(THINGS)} in {place}?"
        )
        return {
            "id": i,
            "qid1": 2 * i + 1,
            "qid2": 2 * i + 2,
            "question1": one,
            "question2": other,
            "is_duplicate": int(same),
        }

    return Known(rows(row), "is_duplicate", ("question1", "question2"), "classification")


@table
def headless_multiple_choice(r: random.Random) -> Known:
    def row(i: int) -> Row:
        options = r.sample([f"the {c} {t}" for c in COLOURS for t in THINGS], 4)
        cells = [f"Which of these did {r.choice(PEOPLE)} see in {r.choice(PLACES)}?", *options, r.choice("ABCD")]
        return {f"column_{k}": cell for k, cell in enumerate(cells, 1)}

    names = tuple(f"column_{k}" for k in range(1, 6))
    return Known(rows(row), "column_6", names, "question answering")


@table
def tickets(r: random.Random) -> Known:
    def row(i: int) -> Row:
        topic = r.choice([*TOPICS])
        return {
            "ticket_id": f"TK-{10000 + i}", "created_at": f"{day(r)} 0{r.randint(1, 9)}:12:00",
            "channel": r.choice(["web", "phone", "chat"]), "priority": r.choice(["low", "medium", "high"]),
            "subject": complaint(r, topic, 4), "body": complaint(r, topic, 30), "queue": topic,
        }  # fmt: skip

    return Known(rows(row), "queue", ("body",), "classification", extra=("subject",))


@table
def replies_of_a_company(r: random.Random) -> Known:
    def row(i: int) -> Row:
        topic = r.choice([*TOPICS])
        thing = r.choice(THINGS)
        return {
            "tweet_id": 119237 + i, "inbound_at": day(r), "customer_tweet": f"@Shop {complaint(r, topic)} My {thing}!",
            "company_reply": f"Sorry to hear about your {thing}."
            f" {r.choice(['Send us a DM', 'Call us', 'Write to us'])} and we will {r.choice(DOINGS)} it.",
            "likes": r.randint(0, 900),
        }  # fmt: skip

    return Known(rows(row), "company_reply", ("customer_tweet",), "response generation")


@table
def corrections(r: random.Random) -> Known:
    def row(i: int) -> Row:
        text = paragraph(r, 1, 2)
        wrong = " ".join(w if r.random() > 0.2 else w[::-1] for w in text.split())
        return {"sent_id": i, "ungrammatical": wrong, "corrected": text, "error_count": r.randint(1, 6)}

    return Known(rows(row), "corrected", ("ungrammatical",), "text generation")


@table
def parallel_without_names(r: random.Random) -> Known:
    def row(i: int) -> Row:
        one, other = phrases(r, "de", "en")
        return {"seg": i, "text_a": one, "text_b": other, "domain": r.choice(["news", "web"])}

    return Known(rows(row), "text_b", ("text_a",), "translation")


@table
def data_told(r: random.Random) -> Known:
    def row(i: int) -> Row:
        who, place, thing = (
            f"The {r.choice(COLOURS).title()} {r.choice(THINGS).title()}",
            r.choice(PLACES),
            r.choice(THINGS),
        )
        cost = r.choice(["cheap", "moderate", "high"])
        return {
            "meaning_representation": f"name[{who}], city[{place}], priceRange[{cost}], near[the {thing} shop]",
            "human_reference": r.choice([
                f"{who} is a {cost} place in {place}, close to the {thing} shop.",
                f"Near the {thing} shop of {place} you find {who}, whose prices are {cost}.",
            ]),
        }  # fmt: skip

    return Known(rows(row), "human_reference", ("meaning_representation",), "text generation")


@table
def extraction(r: random.Random) -> Known:
    def row(i: int) -> Row:
        who, thing, place = r.choice(PEOPLE), r.choice(THINGS), r.choice(PLACES)
        count = r.randint(2, 9)
        return {
            "file": f"mail/{i:04d}.eml", "received": day(r),
            "email_body": f"Hello, this is {who} from {place}. {sentence(r)} "
            f"Please send {count} of the {thing} you showed. Thanks",
            "fields": {"customer": who, "city": place, "item": thing, "count": count},
        }  # fmt: skip

    return Known(rows(row), "fields", ("email_body",), "structured output")


@table
def shell_commands(r: random.Random) -> Known:
    def row(i: int) -> Row:
        name, place = r.choice(THINGS), r.choice(PLACES).lower()
        nl, cmd = r.choice([
            (f"find all files called {name} under the folder {place}", f"find ./{place} -name '{name}' -type f"),
            (f"count the lines of {name} that mention {place}", f"grep {place} {name}.txt | wc -l"),
            (f"delete the folder {name} in {place} and all in it", f"rm -rf ./{place}/{name}"),
        ])  # fmt: skip
        return {"nl": nl, "cmd": cmd}

    return Known(rows(row), "cmd", ("nl",), "structured output")


@table
def news_with_highlights(r: random.Random) -> Known:
    def row(i: int) -> Row:
        body = paragraph(r, 8, 20)
        return {
            "url": f"https://news.example/{token(r)}", "published": f"{r.randint(1, 28)} March 20{r.randint(10, 24)}",
            "author": f"{r.choice(PEOPLE)} {r.choice(PLACES)}", "section": r.choice(["world", "local", "sport"]),
            "body_text": body, "highlights": shortened(r, body, 3),
        }  # fmt: skip

    return Known(rows(row), "highlights", ("body_text",), "summarisation")


@table
def counted_annotators(r: random.Random) -> Known:
    def row(i: int) -> Row:
        kind = r.randrange(3)
        marks = [0, 0, 0]
        marks[kind] = 3
        word = ["vile filth scum", "damn idiot stupid", "lovely sunny thanks"][kind].split()
        return {
            "": i, "count": 3, "hate_speech": marks[0], "offensive_language": marks[1], "neither": marks[2],
            "class": kind, "tweet_text": f"RT @{token(r, 6)}: {r.choice(word)} {sentence(r)}",
        }  # fmt: skip

    return Known(rows(row), "class", ("tweet_text",), "classification")


@table
def german_stars(r: random.Random) -> Known:
    def row(i: int) -> Row:
        stars = r.randint(1, 5)
        word = ["schrecklich", "schlecht", "mittelmäßig", "gut", "hervorragend"][stars - 1]
        return {
            "Produkt_ID": token(r, 8).upper(), "Datum": f"{r.randint(1, 28)}.{r.randint(1, 12)}.2021",
            "Bewertungstext": f"{phrases(r, 'de', 'en')[0]} Ich finde es {word}.", "Sterne": stars,
            "Hilfreich": r.randint(0, 300),
        }  # fmt: skip

    return Known(rows(row), "Sterne", ("Bewertungstext",), "classification")


@table
def word_problems(r: random.Random) -> Known:
    def row(i: int) -> Row:
        who, thing, a, b = r.choice(PEOPLE), r.choice(THINGS), r.randint(3, 40), r.randint(2, 30)
        return {
            "problem": f"{who} has {a} of one {thing} and buys {b} more in {r.choice(PLACES)}. "
            f"How many does {who} have now?",
            "solution": f"At first {who} has {a}. After buying {b} more there are "
            f"{a} + {b} = {a + b}. The answer is {a + b}.",
            "level": r.choice(["1", "2", "3"]),
        }  # fmt: skip

    return Known(rows(row), "solution", ("problem",), "question answering")


@table
def portuguese_intents(r: random.Random) -> Known:
    def row(i: int) -> Row:
        intent = r.choice(["saldo", "bloqueio", "limite", "fatura"])
        words = {
            "saldo": "quanto tenho na conta",
            "bloqueio": "perdi o meu cartão",
            "limite": "aumentar o máximo",
            "fatura": "a conta veio errada",
        }
        return {
            "frase_do_cliente": f"{r.choice(['oi', 'bom dia', 'olá'])} {words[intent]} "
            f"{r.choice(PLACES)} {r.choice(THINGS)}",
            "intencao": intent,
        }

    return Known(rows(row), "intencao", ("frase_do_cliente",), "classification")


@table
def chinese_abstracts(r: random.Random) -> Known:
    def row(i: int) -> Row:
        parts = [phrases(r, "zh", "en")[0] for _ in range(8)]
        return {"编号": i, "正文": "".join(parts), "摘要": "".join(r.sample(parts, 2))}

    return Known(rows(row), "摘要", ("正文",), "summarisation")


@table
def patients(r: random.Random) -> Known:
    def row(i: int) -> Row:
        ill = r.choice(["headache", "fever", "rash", "cough", "insomnia", "nausea", "cramps", "vertigo"])
        drug = r.choice(["ibuprofen", "rest", "water", "ointment", "tea", "exercise"])
        return {
            "Description": f"What helps against {ill} and {r.choice(COLOURS)} spots?",
            "Patient": f"Hello doctor, since {r.choice(TIMES)} I have {ill}. {sentence(r)} What should I do?",
            "Doctor": f"Hi, {ill} of this kind passes. Take {drug} {r.choice(TIMES)} "
            f"and come back if {sentence(r).lower()}",
        }  # fmt: skip

    return Known(rows(row), "Doctor", ("Patient",), "question answering", extra=("Description",))


@table
def simplified(r: random.Random) -> Known:
    def row(i: int) -> Row:
        text = paragraph(r, 2, 3)
        return {"normal": text.replace("the", "the aforementioned"), "simple": " ".join(text.split()[:-3])}

    return Known(rows(row), "simple", ("normal",), "text generation")


@table
def personas(r: random.Random) -> Known:
    def row(i: int) -> Row:
        facts = [f"I own a {r.choice(THINGS)}.", f"I live in {r.choice(PLACES)}."]
        return {
            "conv_id": token(r), "personas": facts, "history": [sentence(r) for _ in range(r.randint(2, 5))],
            "response": f"Well, {r.choice(facts).lower()} {sentence(r)}",
        }  # fmt: skip

    return Known(rows(row), "response", ("history", "personas"), "response generation")


@table
def products(r: random.Random) -> Known:
    kinds = {
        "Kitchen": "kettle toaster blender freezer",
        "Music": "piano violin guitar drum",
        "Garden": "rake ladder saw hose",
    }

    def row(i: int) -> Row:
        kind = r.choice([*kinds])
        return {
            "product_title": f"{r.choice(COLOURS)} {r.choice(kinds[kind].split())} {token(r, 4)} "
            f"{r.randint(1, 90)} cm", "merchant_id": r.randint(1, 300),
            "category_label": kind, "category_id": 2600 + [*kinds].index(kind), "price": round(r.uniform(5, 300), 2),
        }  # fmt: skip

    return Known(rows(row), "category_label", ("product_title",), "classification")


@table
def paraphrases(r: random.Random) -> Known:
    def row(i: int) -> Row:
        who, thing, place = r.choice(PEOPLE), r.choice(THINGS), r.choice(PLACES)
        return {
            "phrase": f"{who} bought the {thing} in {place}",
            "paraphrase": f"it was in {place} that the {thing} was bought by {who}",
        }

    return Known(rows(row), "paraphrase", ("phrase",), "text generation")


@table
def questions_in_japanese(r: random.Random) -> Known:
    def row(i: int) -> Row:
        city, thing = (
            r.choice(["東京", "大阪", "京都", "札幌", "福岡"]),
            r.choice(["お土産", "電車", "天気", "料理", "ホテル"]),
        )
        return {
            "番号": i,
            "質問": f"{city}の{thing}について教えてくれますか？",
            "回答": f"{city}の{thing}は{r.choice(['有名です', '便利です', '高いです'])}。",
        }

    return Known(rows(row), "回答", ("質問",), "question answering")


@table
def several_answers(r: random.Random) -> Known:
    def row(i: int) -> Row:
        who, thing, place = r.choice(PEOPLE), r.choice(THINGS), r.choice(PLACES)
        return {
            "query_id": i, "query": f"where does {who} keep the {thing}",
            "passage": f"{sentence(r)} {who} keeps the {thing} in {place}. {paragraph(r, 2, 4)}",
            "answers": [f"in {place}", place],
        }  # fmt: skip

    return Known(rows(row), "answers[0]", ("query", "passage"), "question answering", references=("answers",))


@table
def conversations_under_another_name(r: random.Random) -> Known:
    def row(i: int) -> Row:
        return {
            "uid": token(r),
            "log": [{"role": "user", "content": sentence(r)}, {"role": "assistant", "content": sentence(r)}],
        }

    return Known(rows(row), "log", (), "conversation")


@table
def titles_and_categories(r: random.Random) -> Known:
    def row(i: int) -> Row:
        topic = r.choice([*TOPICS])
        return {"date": day(r), "headline_text": complaint(r, topic, 9), "news_category": topic}

    return Known(rows(row), "news_category", ("headline_text",), "classification")


@table
def descriptions_and_code(r: random.Random) -> Known:
    def row(i: int) -> Row:
        name, other = r.choice(THINGS), r.choice(COLOURS)
        return {
            "task_id": f"py/{i}",
            "task_description": f"Write a function that adds {r.randint(1, 9)} "
            f"to each {name} of the {other} list and returns it.",
            "python": f"def add_{name}({other}):\n    return [each + {r.randint(1, 9)} for each in {other}]\n",
        }  # fmt: skip

    return Known(rows(row), "python", ("task_description",), "structured output")


@table
def population(r: random.Random) -> Known:
    return Known(rows(lambda i: {
        "UF": r.choice(["RO", "AC", "SP", "RJ"]), "IBGE7": 1100015 + i,
        "NOME": f"{r.choice(PLACES)} {token(r, 4)} do Sul",
        "POPULACAO": r.randint(900, 90000),
    }))  # fmt: skip


@table
def encyclopedia(r: random.Random) -> Known:
    def row(i: int) -> Row:
        name = f"{r.choice(THINGS)} {r.choice(PLACES)}"
        return {
            "id": i,
            "url": f"https://wiki.example/{i}",
            "title": name,
            "body": f"{name} is a place. {paragraph(r, 5, 20)}",
        }

    return Known(rows(row))


@table
def unrelated_texts(r: random.Random) -> Known:
    return Known(rows(lambda i: {"a": sentence(r), "b": paragraph(r, 1, 2), "c": day(r)}))


@table
def codes_and_titles(r: random.Random) -> Known:
    return Known(
        rows(
            lambda i: {
                "CODIGO": f"{10105 + 5 * i:06d}",
                "TITULO": f"{r.choice(DOINGS)} {r.choice(THINGS)} of {r.choice(PLACES)}",
            }
        )
    )


def hidden(known: Known) -> Known:
    """The same table without its names."""
    names = list(dict.fromkeys(name for row in known.rows for name in row))
    new = {name: f"column_{i}" for i, name in enumerate(names, 1)}

    def renamed(text: str) -> str:
        head, bracket, rest = text.partition("[")
        return new[head] + bracket + rest

    made = [{new[name]: value for name, value in row.items()} for row in known.rows]
    return Known(
        made, known.answer and renamed(known.answer), tuple(map(renamed, known.inputs)), known.task,
        tuple(map(renamed, known.extra)), tuple(map(renamed, known.references)),
    )  # fmt: skip
