"""What a file's columns mean, recognised by their names and first rows: which text is the prompt, and which the
answer."""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from afina.core.text import shell_word

ASKED = ("prompt", "question", "instruction", "query", "input", "user", "utterance")
ANSWERED = ("completion", "response", "answer", "output", "assistant", "reply")
PAIR_ANSWERED = ("gpt", "bot", *ANSWERED)  # beside a question in one item of a conversation
SYSTEMS = ("system", "system_prompt", "system_message", "systeminstruction", "system_instruction")
TOOLS = ("tools", "functions")
HISTORIES = ("history",)
ALTERNATIVES = ("answers", "responses", "references", "targets", "summaries", "translations")  # each of them is right
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
TEXTS = ("text", "sentence", "review", "comment", "content", "tweet", "message", "utterance", "title")
LABELS = ("label", "category", "class", "sentiment", "intent", "emotion", "topic", "stars", "rating")
DOCUMENTS = ("document", "article", "dialogue", "source", "text", "body", "content", "abstract")
SUMMARIES = ("summary", "highlights", "target", "tldr", "headline", "abstract")
CHOICES = ("choices", "options", "endings", "alternatives")
KEYS = ("answerkey", "answer_key", "answer_idx", "correct_answer", "correct_option", "correct", "answer", "label")
PASSAGES = ("context", "passage", "article", "document")
CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns", "contents")
CHOSEN = ("chosen", "preferred_output")
REJECTED = ("rejected", "non_preferred_output")
LANGUAGES = {
    "en": "English", "pt": "Portuguese", "es": "Spanish", "fr": "French", "de": "German", "it": "Italian",
    "nl": "Dutch", "pl": "Polish", "ru": "Russian", "uk": "Ukrainian", "zh": "Chinese", "ja": "Japanese",
    "ko": "Korean", "ar": "Arabic", "tr": "Turkish", "hi": "Hindi", "sv": "Swedish", "da": "Danish",
    "fi": "Finnish", "cs": "Czech", "ro": "Romanian", "el": "Greek", "he": "Hebrew", "ca": "Catalan",
    "gl": "Galician", "eu": "Basque", "vi": "Vietnamese", "id": "Indonesian", "hu": "Hungarian",
}  # fmt: skip
_OWN_NAMES = {
    "português": "pt",
    "portugues": "pt",
    "español": "es",
    "français": "fr",
    "deutsch": "de",
    "inglês": "en",
    "ingles": "en",
}
Kind = Literal["classification", "structured", "translation", "summarisation", "chat", "generation", "text"]
ONE_ANSWER: tuple[Kind, ...] = ("classification", "structured", "translation")  # of which there is one right answer
_ONE_CHOICE = re.compile(r"(?:(?:option|choice|answer|opt)[ _]?)?([a-h]|[0-9])")  # a column of one of the choices
_SPEAKER = r"(?:#+[ \t]*)?(Human|User|Assistant|AI|Bot)[ \t]*:"
_SPOKEN = re.compile(rf"\s*{_SPEAKER}")
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")
_FEW_LABELS = 0.5  # labels are repeated: distinct ones are at most this fraction of the rows


@dataclass(frozen=True)
class Layout:
    """A known kind of file. `conversation` are the columns of messages: one with all of them, or that of the question
    and that of the answer; where there is none, `prompt` and `completion` are templates.

    `kind` is the kind of task where the layout implies it. `last_only` says that of a conversation in one column only
    the last answer is meant.
    """

    name: str
    prompt: str | None = None
    completion: str | None = None
    conversation: tuple[str, ...] = ()
    kind: Kind | None = None
    last_only: bool = False

    def words(self) -> str:
        if self.conversation:
            return f"{self.name}: the conversation is in {' and '.join(map(repr, self.conversation))}"
        if self.prompt is None:
            return f"{self.name}: all of {self.completion!r} is learned, as it is"
        return f"{self.name}: --prompt {shell_word(self.prompt)} --completion {shell_word(self.completion or '')}"


def recognise(columns: Sequence[str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    """The layout of rows with these columns; None where the names do not say. The most specific layouts come first."""
    named = {name.strip().lower(): name for name in columns}
    found = _recognised(named, columns, sample)
    return found and _taking_lists(found, sample)


def _recognised(named: dict[str, str], columns: Sequence[str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    return (
        _conversation(named, sample)
        or _preference(named, sample)
        or _asked_and_answered(named, sample)
        or _multiple_choice(named, sample)
        or _alpaca(named)
        or _question(named)
        or _translation(columns, sample)
        or _prompted(named)
        or _classification(named, sample)
        or _summary(named)
        or _source_target(named)
        or _plain(named)
    )


def _taking_lists(layout: Layout, sample: Sequence[dict[str, Any]]) -> Layout:
    """With an answer that is a list in some rows: of answers the first, of anything else all, in one text."""
    column = layout.completion[1:-1] if layout.completion else ""
    values = [row[column] for row in sample if row.get(column)]
    listed = [value for value in values if isinstance(value, list)]
    shape = ""
    if any(isinstance(value, dict) and isinstance(value.get("text"), list) for value in values[:1]):  # SQuAD
        shape = "[text][0]"
    elif listed and column.strip().lower() in ALTERNATIVES:
        shape = "[0]"
    elif listed and all(isinstance(item, str | int | float) for value in listed for item in value):
        sentences = all(str(item).rstrip().endswith(_SENTENCE_ENDS) for value in listed for item in value)
        shape = "[ ]" if sentences else "[, ]"
    return replace(layout, completion=f"{{{column}{shape}}}") if shape else layout


def first(names: Sequence[str], named: dict[str, str]) -> str | None:
    return next((named[name] for name in names if name in named), None)


def parsed(value: Any) -> Any:
    """What a text spells, where it spells a list or an object in JSON or in Python (as tables hold them); anything
    else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list | dict) else value
    return value


def example_of(column: str, sample: Sequence[dict[str, Any]]) -> Any:
    """The first value of a column that holds something."""
    return next((found for row in sample if (found := parsed(row.get(column))) not in (None, "", [], {})), None)


def _conversation_in(column: str | None, sample: Sequence[dict[str, Any]]) -> list[Any] | None:
    """The first value of a column that is a list of messages: each with its speaker, or a question with its answer."""
    values = (messages_in(row.get(column)) for row in sample) if column else ()
    return next((turns for turns in values if isinstance(turns, list) and _speaks(next(iter(turns), None))), None)


def messages_in(value: Any) -> Any:
    """The list of messages that an object holds, as OpenAI's preference data have it; anything else `parsed`."""
    found = parsed(value)
    return found["messages"] if isinstance(found, dict) and isinstance(found.get("messages"), list) else found


def transcript(text: Any) -> list[dict[str, str]]:
    """The messages of a dialogue in one text ('Human: …' and 'Assistant: …', of paragraphs or of lines), each with its
    speaker; none where it is no such text."""
    if isinstance(text, str) and _SPOKEN.match(text):
        for between in (r"\n\s*\n", r"\n"):
            _, *pieces = re.split(rf"(?:\A\s*|{between}){_SPEAKER}", text)
            turns = [
                {"from": who.lower(), "value": said.strip()} for who, said in zip(*[iter(pieces)] * 2, strict=True)
            ]
            if {turn["from"] in ("human", "user") for turn in turns} == {True, False}:
                return turns
    return []


def _speaks(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    pair = {"human", *ASKED} & item.keys() and set(PAIR_ANSWERED) & item.keys()
    return bool(pair) or not item.keys().isdisjoint(("role", "from", "speaker"))


def _conversation(named: dict[str, str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    for name in CONVERSATIONS:
        if turns := _conversation_in(named.get(name), sample):
            known = "ShareGPT conversations" if "from" in turns[0] else "messages"
            return Layout(known, conversation=(named[name],), kind="chat")
    return None


def _asked_and_answered(named: dict[str, str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    """Question and answer in columns of their own, of which one at least holds messages."""
    asked, answered = first(ASKED, named), first(ANSWERED, named)
    if asked and answered and any(_conversation_in(column, sample) for column in (asked, answered)):
        return Layout("messages of question and answer", conversation=(asked, answered), kind="chat")
    return None


def _preference(named: dict[str, str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    """Of a preferred and a rejected answer the preferred one is learned."""
    chosen, rejected, asked = first(CHOSEN, named), first(REJECTED, named), first(ASKED, named)
    if not chosen or not rejected:
        return None
    name = "preference pairs, the chosen one learned"
    turns = _conversation_in(chosen, sample)
    if not asked and any(transcript(row.get(chosen)) for row in sample):
        return Layout(name, conversation=(chosen,), kind="chat", last_only=True)
    if turns and not (asked and _begins_with_answer(turns)):
        return Layout(name, conversation=(chosen,), kind="chat", last_only=True)
    if asked and (turns or _conversation_in(asked, sample)):
        return Layout(name, conversation=(asked, chosen), kind="chat")
    return Layout(name, f"{{{asked}}}", f"{{{chosen}}}") if asked else None


def _begins_with_answer(turns: list[dict[str, Any]]) -> bool:
    return str(turns[0].get("role", turns[0].get("from"))).lower() in ("assistant", "gpt", "bot", "model")


def _multiple_choice(named: dict[str, str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    """A question, what may be answered, and which of it is right: its letter, its number or its text. The choices are
    shown with the marks by which they are answered."""
    asked, key = first(ASKED, named), first(KEYS, named)
    together, each = first(CHOICES, named), _columns_of_choices(named)
    if asked is None or key is None or (together is None and not each):
        return None
    kept = {column for column in (together, *each.values()) if column}
    rows = [row for row in sample if all(row.get(column) not in (None, "") for column in (*kept, key))]
    shape = "[text]" if any(isinstance(row.get(str(together)), dict) for row in rows) else ""  # beside their marks
    if together is None:
        found = [[str(row[column]) for column in each.values()] for row in rows]
    else:
        found = [_texts_of(parsed(row[str(together)]), shape) for row in rows]
    mark = _first_mark(found, [str(row[key]).strip() for row in rows])
    if mark is None:
        return None
    counted_from = f"{mark}. " if mark else "\n"
    choices = f"{{{together}{shape}[{counted_from}]}}"
    if together is None:
        choices = "\n".join(
            f"{chr(ord(mark) + i)}. {{{column}}}" if mark else f"{{{column}}}" for i, column in enumerate(each.values())
        )
    passage = first(PASSAGES, named)
    prompt = "\n\n".join([*([f"{{{passage}}}"] if passage else []), f"{{{asked}}}", choices])
    return Layout("multiple choice", prompt, f"{{{key}}}")


def _columns_of_choices(named: dict[str, str]) -> dict[str, str]:
    """Columns that hold one choice each, by their letters or numbers, in order: those of a question are three or
    more."""
    found = {match[1]: name for low, name in named.items() if (match := _ONE_CHOICE.fullmatch(low))}
    return dict(sorted(found.items())) if len(found) > 2 else {}


def _texts_of(value: Any, shape: str) -> list[str]:
    listed = value.get("text") if shape and isinstance(value, dict) else value
    return [str(item) for item in listed] if isinstance(listed, list) else []


def _first_mark(choices: Sequence[Sequence[str]], answers: Sequence[str]) -> str | None:
    """What the first choice is called by the answers: A, a, 0 or 1; empty where they repeat a choice; None where they
    mean none of the choices, or may be counted from 0 as well as from 1."""
    pairs = list(zip(choices, answers, strict=True))
    if not pairs or any(not each for each, _ in pairs):
        return None
    if all(answer in each for each, answer in pairs):
        return ""
    marks = [
        mark for mark in "01Aa"
        if all(len(answer) == 1 and 0 <= ord(answer) - ord(mark) < len(each) for each, answer in pairs)
    ]  # fmt: skip
    return marks[0] if len(marks) == 1 else None


def _alpaca(named: dict[str, str]) -> Layout | None:
    if not {"instruction", "output"} <= named.keys():
        return None
    extra = named.get("input")
    prompt = f"{{{named['instruction']}}}" + (f"\n\n{{{extra}?}}" if extra else "")
    return Layout("instruction, input and output", prompt, f"{{{named['output']}}}")


def _question(named: dict[str, str]) -> Layout | None:
    if "question" not in named:
        return None
    answer = first(("answer", "answers", "response", "output"), named)
    if answer is None:
        return None
    return _asked_about("question", named, named["question"], answer)


def _prompted(named: dict[str, str]) -> Layout | None:
    asked, answered = first(ASKED, named), first(ANSWERED, named)
    return _asked_about("prompt", named, asked, answered) if asked and answered and asked != answered else None


def _asked_about(name: str, named: dict[str, str], asked: str, answered: str) -> Layout:
    """With the text that a question is about, where there is one; some rows may have none."""
    text = first(PASSAGES, named)
    prompt = f"{{{text}?}}\n\n{{{asked}}}" if text else f"{{{asked}}}"
    ends = "answer" if name == "question" else "completion"
    return Layout(f"{name}, context and {ends}" if text else f"{name} and {ends}", prompt, f"{{{answered}}}")


def language(name: str) -> str | None:
    """The language that a column is named after: 'en', 'eng_Latn', 'English', 'text_pt', 'português'."""
    low = name.strip().lower()
    by_name = {own.lower(): code for code, own in LANGUAGES.items()} | _OWN_NAMES
    for part in (low, *re.split(r"[_\W]+", low)):
        if part in by_name:
            return LANGUAGES[by_name[part]]
    parts = re.split(r"[_\W]+", low)
    return LANGUAGES.get(low) or (LANGUAGES.get(parts[-1]) if len(parts) == 2 else None)


def _translation(columns: Sequence[str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    for column in columns:
        value = next((row[column] for row in sample if row.get(column)), None)
        if isinstance(value, dict) and len(value) == 2 and all(language(key) for key in value):
            return _translated([(f"{column}[{key}]", str(language(key))) for key in value])
    found = [(column, tongue) for column in columns if (tongue := language(column))]
    return _translated(found) if len(found) == 2 and found[0][1] != found[1][1] else None


def _translated(pair: list[tuple[str, str]]) -> Layout:
    (source, one), (target, other) = pair
    prompt = f"Translate from {one} to {other}:\n{{{source}}}"
    return Layout("translation pairs", prompt, f"{{{target}}}", kind="translation")


def _pair(
    name: str, named: dict[str, str], asked: Sequence[str], answered: Sequence[str], kind: Kind | None = None
) -> Layout | None:
    one, other = first(asked, named), first(answered, named)
    return Layout(name, f"{{{one}}}", f"{{{other}}}", kind=kind) if one and other and one != other else None


def _classification(named: dict[str, str], sample: Sequence[dict[str, Any]]) -> Layout | None:
    """A text and a label; labels are repeated."""
    found = _pair("text and label", named, TEXTS, LABELS, "classification")
    if found is None or found.prompt is None or found.completion is None:
        return None
    if found.prompt.lower() == "{title}" and _longer_than(found.prompt[1:-1], sample):
        return None  # what the title is of may be the text
    labels = [str(row.get(found.completion[1:-1])) for row in sample]
    return found if len(set(labels)) <= max(2, _FEW_LABELS * len(labels)) else None


def _longer_than(column: str, sample: Sequence[dict[str, Any]]) -> bool:
    """Whether another column has longer texts than `column`."""
    lengths: dict[str, int] = {}
    for row in sample:
        for name, value in row.items():
            lengths[name] = lengths.get(name, 0) + (len(value) if isinstance(value, str) else 0)
    return max(lengths.values(), default=0) > lengths.get(column, 0)


def _summary(named: dict[str, str]) -> Layout | None:
    document = first(DOCUMENTS, named)
    summary = next((named[name] for name in SUMMARIES if name in named and named[name] != document), None)
    if document is None or summary is None or summary == named.get("target"):
        return None
    return Layout("document and summary", f"Summarise:\n{{{document}}}", f"{{{summary}}}", kind="summarisation")


def _source_target(named: dict[str, str]) -> Layout | None:
    return _pair("source and target", named, ("source", "src"), ("target", "tgt", "references", "reference"))


def _plain(named: dict[str, str]) -> Layout | None:
    return Layout("plain text", None, f"{{{named['text']}}}", kind="text") if list(named) == ["text"] else None
