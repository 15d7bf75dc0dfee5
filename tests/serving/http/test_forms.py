"""Answers of a given form, and calls of tools. Numbers are SHIP's complaints."""

import json
import random
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
from chat_templates import FAMILIES
from conftest import byte_tokenizer, save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_client import USER, Client, serving
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from afina.data.conversation import Conversation
from afina.data.mapping import Turn
from afina.models.load import load_base
from afina.models.tokenizer import Tokenizer, wrap
from afina.serving.http.tools import Delta, Dialect, Finder, dialect_of
from afina.serving.schema import Follower, Grammar, SchemaError, check_schema, pattern_form

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Porto", "Rio"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["delivery", "refund"]}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["intent", "n"],
    "additionalProperties": False,
}
ARGUMENTS = {"city": 'Porto "}{[" é', "days": [1, {"a": None}]}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = save_tiny(tmp_path_factory.mktemp("forms") / "tiny-llama", chat_template=FAMILIES["Qwen2.5"].template)
    with serving(load_base(str(folder), precision="fp32", device="cpu")) as found:
        yield found


@pytest.fixture
def schema_client(client: Client) -> Client:
    pytest.importorskip("llguidance", reason="the extra `schema` is not installed")
    return client


@cache
def family(name: str) -> Tokenizer:
    given = FAMILIES[name]
    inner = byte_tokenizer(given.template)
    specials = {*given.specials, given.eos}
    tokens = [AddedToken(text, special=True) for text in sorted(specials)]
    inner.add_special_tokens({"additional_special_tokens": tokens})
    inner.bos_token, inner.eos_token = ("<s>" if "<s>" in specials else None), given.eos
    return wrap(inner, [])


def written(tokenizer: Tokenizer, calls: list[dict]) -> str:
    """What the model writes for calls, as it is seen: without control tokens."""
    listed = [{"id": f"call{i:05}", "type": "function", "function": call} for i, call in enumerate(calls)]
    turns = [
        Turn({"role": "user", "content": "a"}, False),
        Turn({"role": "assistant", "content": "", "tool_calls": listed}, True),
    ]
    body = Conversation(tokenizer, turns, [TOOL], lambda said: None).answers()[-1][1].body
    return tokenizer.decode(tokenizer.encode(body))


def found_in(finder: Finder, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The words and the calls in text that comes in pieces."""
    deltas: list[Delta] = [delta for piece in pieces for delta in finder.add(piece)]
    deltas += finder.finish()
    calls: list[list[str]] = []
    for delta in deltas:
        if delta.name is not None:
            assert delta.index == len(calls)
            calls.append([delta.name, ""])
        elif not delta.content:
            assert delta.index == len(calls) - 1
            calls[-1][1] += delta.arguments
    words = "".join(delta.content for delta in deltas) + finder.rest()
    return words, [(name, arguments) for name, arguments in calls]


def in_pieces(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if name != "DeepSeek-R1"])
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_a_call_is_found_as_each_family_writes_it_however_it_is_cut(name: str, cuts: list[int]) -> None:
    tokenizer = family(name)
    dialect = dialect_of(tokenizer)
    assert dialect is not None
    text = written(tokenizer, [{"name": "weather", "arguments": ARGUMENTS}])
    words, calls = found_in(Finder(dialect, frozenset({"weather"})), in_pieces(text, cuts))
    assert words.strip() in ("", "<think></think>", "<think>\n\n</think>")
    ((called, arguments),) = calls
    assert called == "weather"
    assert json.loads(arguments) == ARGUMENTS


@pytest.mark.parametrize("name", ["Qwen3", "Mistral-v3", "GLM-4.5", "Gemma-3"])
def test_several_calls_are_found(name: str) -> None:
    tokenizer = family(name)
    dialect = dialect_of(tokenizer)
    assert dialect is not None
    given = [{"name": "weather", "arguments": {"city": city}} for city in ("Porto", "Rio", "Lima")]
    text = written(tokenizer, given)
    for pieces in ([text], list(text)):
        words, calls = found_in(Finder(dialect, frozenset({"weather"})), pieces)
        assert words.strip() in ("", "<think></think>", "<think>\n\n</think>")
        assert [(n, json.loads(a)) for n, a in calls] == [(c["name"], c["arguments"]) for c in given]


TAGS = Dialect("<tool_call>", "</tool_call>", "arguments", "", "<tool_call>\n", "\n</tool_call>")
BARE = Dialect("", "", "parameters", "", "", "")


@pytest.mark.parametrize(
    ("dialect", "text", "words", "calls"),
    [
        (TAGS, 'One moment.\n\n<tool_call>{"name":"weather","arguments":{}}</tool_call>', "One moment.",
         [("weather", "{}")]),
        (TAGS, "no call <tool at all \n", "no call <tool at all \n", []),
        (TAGS, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
         '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', []),
        (TAGS, "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
        (TAGS, '<tool_call>{"name": "weather"', '<tool_call>{"name": "weather"', []),
        (TAGS, '<tool_call>{"name": "weather", "arguments": {"a": 1', "", [("weather", '{"a": 1')]),
        (TAGS, '<tool_call>{"name": "weather", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
         [("weather", '{"a": 1}')]),
        (TAGS, '<tool_call>{"name": "weather", "arguments": 3}</tool_call>',
         '<tool_call>{"name": "weather", "arguments": 3}</tool_call>', []),
        (TAGS, '<tool_call>{"arguments": {"a": 1}, "name": "weather"}</tool_call>', "", [("weather", '{"a": 1}')]),
        (BARE, '{"name": "weather", "parameters": {"a": "}"}}', "", [("weather", '{"a": "}"}')]),
        (BARE, '{"a": 1} is JSON', '{"a": 1} is JSON', []),
        (BARE, 'so: {"name": "weather", "parameters": {}}', 'so: {"name": "weather", "parameters": {}}', []),
        (BARE, "", "", []),
    ],
)  # fmt: skip
def test_what_is_no_call_is_told_as_words(dialect: Dialect, text: str, words: str, calls: list) -> None:
    for pieces in ([text], list(text)):
        assert found_in(Finder(dialect, frozenset({"weather"})), pieces) == (words, calls)


def test_tools_are_shown_to_the_model_and_words_stay_words(client: Client) -> None:
    shown = client.post("/apply-template", {"messages": USER, "tools": [TOOL]}).json["prompt"]
    assert '"weather"' in shown
    with_tools = client.chat(tools=[TOOL]).json
    assert with_tools["usage"]["prompt_tokens"] == len(client.base.tokenizer.encode(shown))
    assert with_tools["choices"][0]["finish_reason"] in ("stop", "length")
    without = client.chat(tools=[TOOL], tool_choice="none").json
    assert without["usage"]["prompt_tokens"] == client.chat().json["usage"]["prompt_tokens"]
    called = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rio"}'}}
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "31 °C"},
    ]  # fmt: skip
    shown = client.post("/apply-template", {"messages": called, "tools": [TOOL]}).json["prompt"]
    assert '{"name": "weather", "arguments": {"city": "Rio"}}' in shown
    assert "31 °C" in shown


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_has_to_come_comes(schema_client: Client, choice: str | dict) -> None:
    how = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 150, "temperature": 1, "seed": 1}
    found = schema_client.chat(**how).json["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Porto", "Rio")
    frames = [frame["choices"][0] for frame in schema_client.chat(**how, stream=True).events[:-1]]
    deltas = [each for frame in frames for each in frame["delta"].get("tool_calls", ())]
    assert deltas[0]["function"] == {"name": "weather", "arguments": ""}
    assert deltas[0].keys() == {"index", "id", "type", "function"}
    assert "".join(each["function"]["arguments"] for each in deltas) == call["function"]["arguments"]
    assert frames[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_its_schema(schema_client: Client, seed: int) -> None:
    """21."""
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA, "strict": True}}
    found = schema_client.chat(response_format=form, temperature=1, seed=seed, max_tokens=300).json
    said = json.loads(found["choices"][0]["message"]["content"])
    assert said["intent"] in ("delivery", "refund")
    assert 1 <= said["n"] <= 9
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["afina"]["valid_json"] is True


def test_json_that_is_cut_is_flagged(schema_client: Client) -> None:
    """21."""
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}}
    found = schema_client.chat(response_format=form, max_tokens=3).json
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["afina"]["valid_json"] is False
    streamed = schema_client.chat(response_format=form, max_tokens=3, stream=True).events
    assert streamed[-2]["afina"]["valid_json"] is False
    assert schema_client.chat(response_format={"type": "json_object"}, max_tokens=3).json["afina"]["valid_json"] in (
        0,
        1,
    )


def test_white_space_is_bounded(schema_client: Client) -> None:
    """21: a model that likes nothing better than spaces."""
    spaces = {str(token): 100 for token in schema_client.base.tokenizer.encode(" \n\t")}
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}}
    found = schema_client.chat(response_format=form, logit_bias=spaces, max_tokens=450).json["choices"][0]
    assert found["finish_reason"] == "stop"
    json.loads(found["message"]["content"])


def test_patterns_and_choices(schema_client: Client) -> None:
    for seed in range(3):
        how = {"temperature": 1, "seed": seed}
        found = schema_client.chat(afina={"regex": r"[A-Z]{2}-[0-9]{4}"}, max_tokens=9, **how).json["choices"][0]
        assert found["message"]["content"][2] == "-"
        assert len(found["message"]["content"]) == 7
        chosen = schema_client.complete(prompt="a", afina={"choices": ["red", 'bl"ue', "maçã"]}, **how, max_tokens=20)
        assert chosen.json["choices"][0]["text"] in ("red", 'bl"ue', "maçã")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "object", "minlength": 3},
        {"type": "object", "properties": {"a": {"type": "string", "format": "no-such-format"}}},
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"if": {}, "then": {}},
        {"type": "string", "pattern": "(?=a)b"},
        {"$ref": "https://example.com/schema.json"},
        {"type": "object", "x-guidance": {"lenient": True}},
        {"properties": []},
        {"properties": {"a": 3}},
        {"type": "nothing"},
        {"anyOf": {}},
    ],
)
def test_what_is_not_enforced_is_refused(schema_client: Client, form: dict) -> None:
    """21."""
    found = schema_client.chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": form}})
    assert found.status == 400, found.text
    assert found.error["code"] == "unsupported_schema"
    assert found.error["param"] == "response_format"


TOO_MUCH = [
    ({"$ref": "#"}, "itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "itself"),
    ({"type": "integer", "minimum": -(10**300)}, "301 digits"),
    ({"enum": [10**300]}, "301 digits"),
    ({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}, "400 is the limit"),
    ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "20,000 is the limit"),
    ({"type": "object", "required": 3}, "list of names"),
    ({"allOf": [{"type": "string", "pattern": f"[a-z]{{{i}}}.*"} for i in range(20)]}, "8 is the limit"),
    ({"allOf": [{"type": "string", "pattern": f"[a-z]{{{i}}}.*"} for i in range(6)]}, "its patterns meet"),
    ({"const": "say <|im_end|>"}, "control token"),
    ({"enum": [{"a": ["<|im_end|>"]}]}, "control token"),
    ({"type": "object", "properties": {"<|im_end|>": {"type": "null"}}}, "control token"),
    ({"type": "array", "items": {"pattern": r"^<\|im_end\|>$", "type": "string"}}, "control token"),
    ("(a{1000}){1000}", "20,000 is the limit"),
    ("(a?){2000}a{2000}", "steps for one token"),
    (".*" * 500, "steps for one token"),
    (r"[^\x00-\U0010ffff]", "no answer can"),
    ("(", "unclosed group"),
    (r"a<\|im_end\|>", "control token"),
    (["<|im_end|>"], "control token"),
    (["yes <|im_end|> no", "b"], "control token"),
]


@pytest.mark.parametrize(("form", "words"), TOO_MUCH)
def test_a_form_beyond_the_limits_is_refused_before_the_answer(schema_client: Client, form: object, words: str) -> None:
    begun = time.monotonic()
    if isinstance(form, dict):
        how = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": form}}}
    else:
        how = {"afina": {"regex" if isinstance(form, str) else "choices": form}}
    found = schema_client.chat(**how)
    assert found.status == 400, found.text
    assert found.error["code"] == "unsupported_schema"
    assert words in found.error["message"]
    for internal in ("state", "<", "InternalError", "NoExtension", "limits."):
        assert internal not in found.error["message"].replace("<|im_end|>", "")
    assert time.monotonic() - begun < 5  # some 0.1 s; (a{1000}){1000} would take 2 s for each token


def test_control_tokens_in_the_form_of_a_call_are_refused(schema_client: Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"const": "<|im_end|>"}}}
    found = schema_client.chat(tools=[tool], tool_choice="required")
    assert found.status == 400
    assert "control token" in found.error["message"]


def test_usual_forms_are_within_the_limits(schema_client: Client) -> None:
    texts = {f"t{i}": {"type": "string", "minLength": 1, "maxLength": 200} for i in range(60)}
    formats = {name: {"type": "string", "format": name} for name in ("date-time", "email", "uuid", "uri", "ipv4")}
    tree = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {
        "in": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}}}  # fmt: skip
    for form in (
        {"type": "object", "properties": texts, "required": list(texts)},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(400)}},
        {"type": "object", "properties": formats},
        tree,
        {"type": "integer", "minimum": -(2**62), "maximum": 2**62},
        {"type": "string", "maxLength": 20_000},
    ):
        named = {"type": "json_schema", "json_schema": {"name": "a", "schema": form}}
        assert schema_client.chat(response_format=named, max_tokens=2).status == 200, form
    for pattern in (
        r"[A-Z]{2}-[0-9]{4}",
        "(?s:.{1,5000})",
        "[a-z]{10000}",
        r"\d{4}-\d\d-\d\d( [a-z]+){1,20}",
        ".*[a-m].{5}",
    ):
        assert schema_client.chat(afina={"regex": pattern}, max_tokens=2).status == 200, pattern


def test_a_form_that_gives_out_ends_its_answer_in_words(schema_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no trial foresees; the answer beside it goes on."""
    monkeypatch.setattr("afina.serving.schema._WALKS", 0)
    for stream in (False, True):
        found = schema_client.chat(afina={"regex": "(a?){2000}a{2000}"}, max_tokens=90, stream=stream)
        assert found.status in (200, 400), found.text
        assert "steps for one token" in found.text
        assert "unsupported_schema" in found.text
        assert "<" not in found.text
        assert "state" not in found.text
    assert schema_client.chat(max_tokens=2).status == 200


def test_what_long_tokens_are_too_much_for_is_refused(schema_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.*[a-m].{18}` gives out after some tokens of a usual vocabulary, whose letters lead to 2^18 states. Tried with
    3,000 tokens and a hundredth of the steps; with 49,152 and all of them it is refused as well."""
    monkeypatch.setattr("afina.serving.schema._STEPS", 1000)
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(3000)]
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"] |= {word: 259 + i for i, word in enumerate(dict.fromkeys(words))}
    inner = byte_tokenizer()
    inner._tokenizer = Backend.from_str(json.dumps(state))
    tokenizer = wrap(inner, [])
    Grammar(pattern_form(".*[a-m].{2}"), tokenizer)
    with pytest.raises(SchemaError, match="steps for one token"):
        Grammar(pattern_form(".*[a-m].{18}"), tokenizer)


def test_a_form_is_made_once_and_followed_from_its_beginning_by_each_answer(schema_client: Client) -> None:
    tokenizer = schema_client.base.tokenizer
    grammar = Grammar(pattern_form("[ab]c"), tokenizer)
    first, second = grammar.start(), grammar.start()
    assert isinstance(first, Follower)
    (a,), (c,) = tokenizer.encode("a"), tokenizer.encode("c")
    assert first.allowed([])[a]
    assert first.allowed([a])[c]
    assert second.allowed([])[a]
    assert not second.allowed([])[c]


def test_near_names_of_keywords_are_told() -> None:
    with pytest.raises(SchemaError, match="'minLength'"):
        check_schema({"type": "object", "properties": {"minlength": {"type": "string", "minlength": 3}}})
    check_schema({"type": "object", "properties": {"minlength": True}, "$defs": {"anything": {}}})


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object"}, "afina": {"regex": "a"}},
        {"afina": {"regex": "a", "choices": ["a"]}},
        {"response_format": {"type": "json_object"}, "tools": [TOOL], "tool_choice": "required"},
        {"response_format": {"type": "json_object"}, "ignore_eos": True},
        {"response_format": {"type": "json_object"}, "min_tokens": 3},
        {"tools": [TOOL, TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [TOOL], "tool_choice": {"function": "weather"}},
        {"afina": {"regex": "("}},
    ],
)
def test_forms_that_contradict_each_other_are_refused(schema_client: Client, body: dict) -> None:
    assert schema_client.chat(**body).status == 400


def test_without_the_library_it_is_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    found = client.chat(response_format={"type": "json_object"})
    assert found.status == 400
    assert found.error["code"] == "unsupported_parameter"
    assert "afina[schema]" in found.error["message"]
    assert client.chat(response_format={"type": "text"}).status == 200
