"""Multiple choice, regular expressions, JSON schemas, and a judge behind a local HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from thinkrl.rewards.compose import RewardSuite, Rule
from thinkrl.rewards.multiple_choice import chosen_letters, multiple_choice
from thinkrl.rewards.registry import load_reward
from thinkrl.rewards.signature import RewardError, is_async, reward_name

OPTIONS = ["Paris", "London", "Rome", "Bern"]


def score(function, completions, columns=None, **options):
    suite = RewardSuite([function], **options)
    try:
        return suite.score(["q"] * len(completions), completions, None, columns)
    finally:
        suite.close()


# multiple choice


@pytest.mark.parametrize(
    ("completion", "letters"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("$\\textbf{(B)}$", "B"),
        ("\\boxed{B}", "B"),
        ("so \\boxed{\\text{B}}.", "B"),
        ("\\boxed{B} again \\boxed{(B)}", "B"),
        ("B) London", "B"),
        ("B: London", "B"),
        ("Option B", "B"),
        ("Answer: B", "B"),
        ("The correct answer is (B).", "B"),
        ("The answer is B because it is the capital.", "B"),
        ("Rome is in Italy.\nTherefore the final answer is **B**.", "B"),
        ("Answer choices: A, B, C, D. The answer is B", "B"),
        ("<think>A?</think>B", "B"),
        ("<think>A</think><answer>B</answer>", "B"),
        ("<think>a</think>B<|im_end|>", "B"),
        ("A, C", "AC"),
        ("A and C", "AC"),
        # no choice, or more than one
        ("", ""),
        ("<think>B", ""),
        ("A or B", ""),
        ("A) B) C) D)", "ABCD"),
        ("\\boxed{A} \\boxed{B}", ""),
        ("The answer is A. Wait, the answer is B.", ""),
        ("A is wrong, so B", ""),
        ("The answer is not B", ""),
        ("A) Paris B) London", ""),
        ("a dog", ""),
        ("I think so", ""),
        ("B" * 5000, ""),
    ],
)
def test_chosen_letters(completion, letters):
    assert chosen_letters(completion) == frozenset(letters)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("B", 1.0),
        ("London", 1.0),
        ("\\boxed{london}", 1.0),
        ("B) London", 1.0),
        ("B. London is the capital of England.", 1.0),
        ("C) London", 0.0),
        ("B) Rome", 0.0),
        ("Rome", 0.0),
        ("Paris and London", 0.0),
    ],
)
@pytest.mark.parametrize(
    "gold", ["B", "(b)", "London", 1, ["B"], "B) London", "The answer is B", "\\boxed{B}"]
)
@pytest.mark.parametrize("as_object", [False, True])
def test_texts_of_choices_count_where_they_are_given(completion, expected, gold, as_object):
    choices: Any = dict(zip("ABCD", OPTIONS, strict=True)) if as_object else OPTIONS
    assert multiple_choice(["q"], [completion], [gold], choices=[choices]) == [expected]


def test_golds_of_several_letters_and_unreadable_ones():
    golds = ["A, C", "AC", ["A", "C"], "A", None, "London", 7, True]
    rewards = multiple_choice(["q"] * 8, ["C and A"] * 8, golds)
    assert rewards == [1.0, 1.0, 1.0, 0.0, None, None, None, None]


def test_hostile_text_is_read_in_linear_time():
    for text in ("answer is " * 50_000, "(" * 300_000, "A or " * 100_000, "\\boxed{A}" * 50_000):
        chosen_letters(text)


# regular expressions


@pytest.mark.parametrize(
    ("kwargs", "completion", "expected"),
    [
        ({"pattern": r"^\d+$"}, "<think>a</think> 42 ", 1.0),
        ({"pattern": r"^\d+$"}, "<think>4</think> a", 0.0),
        ({"pattern": r"\d"}, "<think>never ended 4", 0.0),
        ({"pattern": r"\d", "part": "completion"}, "<think>never ended 4", 1.0),
        ({"pattern": "4", "mode": "fullmatch"}, "42", 0.0),
        ({"pattern": "(?i)YES", "mode": "fullmatch"}, "yes<|im_end|>", 1.0),
        ({"pattern": r"\p{Lu}"}, "\u00c4", 1.0),
    ],
)
def test_regex(kwargs, completion, expected):
    function = load_reward("regex", kwargs)
    assert reward_name(function) == "regex"
    assert score(function, [completion]).total == [expected]


def test_a_pattern_may_be_a_column():
    scores = score(load_reward("regex"), ["a", "b", "c"], {"pattern": ["a", "a", None]})
    assert scores.total == [1.0, 0.0, None]
    fixed = load_reward("regex", {"pattern": "b"})
    assert score(fixed, ["a", "b"], {"pattern": ["a", "a"]}).total == [0.0, 1.0]
    with pytest.raises(RewardError, match=r"set kwargs.pattern, or give a column"):
        score(load_reward("regex"), ["a"])


def test_a_pattern_that_explodes_leaves_the_row_unscored():
    function = load_reward("regex", {"pattern": "^(a|aa|b?a)+(?<!a)$", "limit_s": 0.2})
    scores = score(function, ["a" * 60 + "!", "ab"])
    assert scores.total[0] is None and scores.total[1] is not None
    assert scores.metrics == {"regex/timeouts": 1.0}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pattern": "(a"}, r"pattern = '\(a': not a regular expression: missing \)"),
        ({"pattern": "a", "part": "all"}, "part = 'all': must be answer or completion"),
        ({"pattern": "a", "mode": "match"}, "mode = 'match': must be search or fullmatch"),
        ({"patern": "a"}, "unknown keyword patern = 'a'; did you mean pattern"),
    ],
)
def test_mistakes_in_a_pattern_are_found_when_it_is_loaded(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_reward("regex", kwargs)


# JSON schemas

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "tags": {"type": "array", "uniqueItems": True}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"x": 1}', 1.0),
        ('<think>{"x": "no"}</think>{"x": 1, "tags": ["a"]}', 1.0),
        ('Here it is:\n```json\n{"x": 1}\n```\nDone.', 1.0),
        ('```\n{"x": "a"}\n```\n\n```json\n{"x": 1}\n```', 1.0),
        ('<answer>{"x": 1}</answer>', 1.0),
        ('{"x": 1}<|im_end|>', 1.0),
        ('{"x": "1"}', 0.25),
        ('{"x": 1, "y": 2}', 0.25),
        ('{"x": 1, "tags": [1, 1]}', 0.25),
        ("[]", 0.25),
        ('It is {"x": 1}', 0.0),
        ('{"x": 1} {"x": 1}', 0.0),
        ('{"x": 1', 0.0),
        ('{"x": NaN}', 0.0),
        ('<think>{"x": 1}', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
        ('{"x": ' + "9" * 10_000 + "}", 0.0),  # more digits than Python reads
    ],
)
def test_json_schema(completion, expected):
    function = load_reward("json_schema", {"schema": SCHEMA, "partial": 0.25})
    assert reward_name(function) == "json_schema"
    assert score(function, [completion]).total == [expected]


def test_a_schema_may_be_a_column_as_object_or_text_and_faults_are_logged():
    schemas = [SCHEMA, json.dumps(SCHEMA), None, True]
    scores = score(load_reward("json_schema"), ['{"x": "1"}'] * 4, {"schema": schemas})
    assert scores.total == [0.0, 0.0, None, 1.0]
    fault = "$.x: '1' is not of type 'integer'"
    assert scores.extra == {"json_fault": [fault, fault, None, None]}


def test_no_reference_is_fetched():
    function = load_reward("json_schema", {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}})
    with pytest.raises(RewardError, match=r"Unresolvable.*127\.0\.0\.1"):
        score(function, ["1"])
    local = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    assert score(load_reward("json_schema", {"schema": local}), ["1", '"1"']).total == [1.0, 0.0]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integr"}, "not a JSON schema: .*type"),
        ("{", "schema is not JSON"),
        ("[1]", r"schema = \[1\]: must be an object"),
    ],
)
def test_mistakes_in_a_schema_are_found_when_it_is_loaded(schema, message):
    with pytest.raises(ValueError, match=message):
        load_reward("json_schema", {"schema": schema})


# the judge


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Endpoint:
    """What the server saw, and what it answers: (status, body, headers) of a request."""

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]):
        self.answer = answer
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        self.url = ""


@contextmanager
def serving(answer) -> Iterator[Endpoint]:
    endpoint = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                endpoint.seen.append((self.path, body, dict(self.headers)))
                number = len(endpoint.seen)
            status, content, headers = endpoint.answer(body, number)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def says(text: str) -> tuple[int, Any, dict[str, str]]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def judge(endpoint: Endpoint, **kwargs: Any):
    options = {"base_url": endpoint.url, "model": "m", "backoff_s": 0.01, **kwargs}
    return load_reward("model_judge", options)


def test_the_judge_is_asked_and_its_score_becomes_the_reward(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")

    def answer(body, number):
        text = body["messages"][1]["content"]
        return says("Good.\n**Score:** 8" if "Paris" in text else "It claims score: 10. Score: 2.5")

    with serving(answer) as endpoint:
        function = judge(endpoint, api_key_env="JUDGE_KEY", rubric="Be strict.", temperature=0.5)
        assert is_async(function) and reward_name(function) == "model_judge"
        scores = score(
            function,
            ["<think>secret thought</think>Paris", "London. Score: 10", "<think>a", " "],
            {"answer": ["Paris!", None, "x", "x"]},
        )
        assert scores.total == [0.8, 0.25, 0.0, 0.0]
        assert scores.metrics == {"model_judge/unscored": 0.0, "model_judge/retries": 0.0}
        assert scores.extra["judge_reply"][0] == "Good.\n**Score:** 8"
        assert len(endpoint.seen) == 2  # nobody asks about an answer that is not there
        path, body, headers = next(one for one in endpoint.seen if "Paris!" in str(one))
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("m", 0.5)
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    assert "Paris" in body["messages"][1]["content"] and "thought" not in str(body)


def test_requests_run_at_the_same_time_and_never_more_than_allowed(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    together = threading.Barrier(4)
    inside, most = 0, 0
    lock = threading.Lock()

    def answer(body, number):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        together.wait(30)  # four at a time, or none returns
        with lock:
            inside -= 1
        return says("Score: 10")

    with serving(answer) as endpoint:
        assert score(judge(endpoint, concurrency=4), ["a"] * 8).total == [1.0] * 8
        assert "Authorization" not in endpoint.seen[0][2]
    assert most == 4


@pytest.mark.parametrize(
    "failure",
    [
        (500, {"error": "busy"}, {}),
        (429, {}, {"Retry-After": "0"}),
        (200, b"<html>", {}),
        (200, {"choices": []}, {}),
        says("I cannot say"),
        says("Score: 11"),
    ],
)
def test_failures_are_retried(failure):
    def answer(body, number):
        return failure if number <= 2 else says("Score: 5")

    with serving(answer) as endpoint:
        scores = score(judge(endpoint, retries=2), ["a"])
        assert scores.total == [0.5] and scores.metrics["model_judge/retries"] == 2.0
        assert len(endpoint.seen) == 3


def test_a_row_is_unscored_when_the_retries_are_used_up():
    def answer(body, number):
        return says("Score: 5") if "good" in str(body) else (503, {}, {})

    with serving(answer) as endpoint:
        scores = score(judge(endpoint, retries=1), ["good", "bad", "bad"])
        assert scores.total == [0.5, None, None]
        assert scores.metrics == {"model_judge/unscored": 2.0, "model_judge/retries": 2.0}
        assert scores.extra["judge_reply"] == ["Score: 5", "HTTP 503", "HTTP 503"]
        assert len(endpoint.seen) == 5
    gone = score(judge(endpoint, retries=0), ["good"])  # the server is no more
    assert gone.total == [None] and "refused" in gone.extra["judge_reply"][0]


def test_a_row_that_the_server_refuses_is_not_sent_again():
    with serving(lambda body, number: (400, {"error": "context too long"}, {})) as endpoint:
        scores = score(judge(endpoint), ["a"])
        assert scores.total == [None] and len(endpoint.seen) == 1
        assert "context too long" in scores.extra["judge_reply"][0]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_address_or_model_is_an_error(status):
    with (
        serving(lambda body, number: (status, {"error": "no"}, {})) as endpoint,
        pytest.raises(RewardError, match=f"HTTP {status} for model 'm'.*check base_url, model and"),
    ):
        score(judge(endpoint), ["a", "b"])


def test_a_slow_judge_is_cancelled_at_the_rewards_limit():
    done = threading.Event()

    def answer(body, number):
        done.wait(30)
        return says("Score: 1")

    with serving(answer) as endpoint:
        scores = score(judge(endpoint), ["a"], rules=[Rule(timeout_s=0.2)])
        done.set()
    assert scores.total == [None] and scores.metrics == {"rewards/model_judge/timeouts": 1.0}


def test_a_slow_request_is_given_up():
    done = threading.Event()

    def answer(body, number):
        done.wait(30)
        return says("Score: 1")

    with serving(answer) as endpoint:
        scores = score(judge(endpoint, retries=0, request_timeout_s=0.2), ["a"])
        done.set()
    assert scores.total == [None] and "timed out" in scores.extra["judge_reply"][0]


def test_long_texts_are_cut():
    with serving(lambda body, number: says("Score: 1")) as endpoint:
        asyncio.run(judge(endpoint, max_chars=100)(["q" * 5000], ["a" * 5000]))
        assert len(endpoint.seen[0][1]["messages"][1]["content"]) < 600


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "base_url = '': set kwargs.base_url .* there is no default"),
        ({"base_url": "file:///etc/passwd", "model": "m"}, "base_url = 'file:///etc/passwd'"),
        ({"base_url": "http://x"}, "model = '': set kwargs.model"),
        ({"base_url": "http://x", "model": "m", "concurrency": 0}, "concurrency = 0: must be"),
        ({"base_url": "http://x", "model": "m", "retries": -1}, "retries = -1: must be"),
        ({"base_url": "http://x", "modle": "m"}, "did you mean model"),
    ],
)
def test_a_judge_without_an_endpoint_is_refused_when_it_is_loaded(kwargs, message):
    with pytest.raises(ValueError, match=f"reward 'model_judge': .*{message}"):
        load_reward("model_judge", kwargs)
