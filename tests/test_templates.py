"""Prompt templates: text, chats, what a reward can know of a pre-filled <think>."""

from __future__ import annotations

import pytest
from thinkrl.grpo.templates import TEMPLATES, PromptTemplate
from thinkrl.models.tokenizer import char_tokenizer
from thinkrl.rewards.answer_format import is_think_format
from thinkrl.rewards.completion import opens_thinking

CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if not (loop.last and continue_final_message) %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Bare:
    chat_template = None


def chat_tokenizer(template=CHAT):
    tokenizer = char_tokenizer("ab")
    tokenizer.chat_template = template
    return tokenizer


def render(name, row, tokenizer=None, **options):
    return PromptTemplate(name, tokenizer=tokenizer or Bare(), **options).render(row)


def test_none_keeps_the_prompt():
    rendered = render("none", {"prompt": " 1+1= {{ x }} "})
    assert rendered.text == " 1+1= {{ x }} "  # a prompt is text, never a template itself
    assert rendered.messages is None and rendered.special_tokens


def test_r1_zero_mentions_the_tags_and_its_variant_opens_thinking():
    plain = render("r1_zero", {"prompt": "2+2?"}).text
    opened = render("r1_zero_think", {"prompt": "2+2?"}).text
    assert plain.startswith("A conversation between User and Assistant.")
    assert plain.endswith("User: 2+2?\nAssistant:") and opened == plain + " <think>"
    assert not opens_thinking(plain) and opens_thinking(opened)
    completion = " a</think> <answer>4</answer>"
    assert is_think_format(completion, prompt=opened, answer_tags=True)
    assert not is_think_format(completion, prompt=plain, answer_tags=True)


def test_boxed_asks_for_a_box():
    assert "\\boxed{}" in render("boxed", {"prompt": "2+2?"}).text
    assert set(TEMPLATES) == {"none", "r1_zero", "r1_zero_think", "boxed"}


def test_a_jinja_string_reads_columns(tmp_path):
    text = "Using {{ numbers }}, reach {{ target }}.{% if hint is defined %} {{ hint }}{% endif %}"
    row = {"numbers": [3, 5], "target": 8}
    assert render(text, row).text == "Using [3, 5], reach 8."
    path = tmp_path / "mine.jinja"
    path.write_text(text + "\n")  # editors end files with a line break: Jinja drops one
    template = PromptTemplate(str(path), tokenizer=Bare())
    assert template.render({**row, "hint": "Add."}).text == "Using [3, 5], reach 8. Add."
    assert "prompt" not in template.variables


def test_chat_wraps_text_in_the_tokenizers_template():
    rendered = render("chat", {"prompt": "a"}, chat_tokenizer())
    assert rendered.text == "<|user|>a<|end|><|assistant|>"
    assert rendered.messages is None and not rendered.special_tokens
    rendered = render("chat", {"prompt": "a"}, chat_tokenizer(), system_prompt="b")
    assert rendered.text == "<|system|>b<|end|><|user|>a<|end|><|assistant|>"


@pytest.mark.parametrize("name", ["none", "chat"])
def test_conversations_use_the_chat_template(name):
    messages = [{"role": "user", "content": "a"}]
    rendered = render(name, {"prompt": messages}, chat_tokenizer(), system_prompt="b")
    assert rendered.text == "<|system|>b<|end|><|user|>a<|end|><|assistant|>"
    assert rendered.messages is not None and rendered.messages[1:] == messages
    own = [{"role": "system", "content": "x"}, *messages]
    rendered = render(name, {"prompt": own}, chat_tokenizer(), system_prompt="b")
    assert rendered.messages == own  # a conversation's own system message stays


def test_a_conversation_that_ends_with_the_assistant_is_continued():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>"}]
    rendered = render("chat", {"prompt": messages}, chat_tokenizer())
    assert rendered.text == "<|user|>a<|end|><|assistant|><think>"
    assert opens_thinking(rendered.text)


def test_a_chat_template_that_opens_thinking_is_seen_in_the_text():
    tokenizer = chat_tokenizer(CHAT.replace("<|assistant|>{%", "<|assistant|><think>\n{%"))
    rendered = render("chat", {"prompt": "a"}, tokenizer)
    assert rendered.text.endswith("<|assistant|><think>\n") and opens_thinking(rendered.text)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("r1zero", {}, r"data.template = r1zero: unknown; did you mean r1_zero\?"),
        ("zzz", {}, "templates: none, r1_zero"),
        ("missing.jinja", {}, "data.template = missing.jinja: no such file"),
        ("{{ prompt", {}, "line 1 is not Jinja"),
        ("{% for x in y %}", {}, "is not Jinja"),
        ("chat", {}, "the tokenizer has no chat template"),
    ],
)
def test_unusable_templates_are_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        PromptTemplate(name, tokenizer=Bare(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row", "options", "message"),
    [
        ("{{ promt }}", {"prompt": "a"}, {}, r"'promt', which is no column; did you mean prompt\?"),
        ("{{ zzz }}", {"prompt": "a"}, {}, "columns: prompt"),
        ("{{ meta.title }}", {"meta": {}}, {}, "a part of a column"),
        ("{{ a / b }}", {"a": 1, "b": 0}, {}, "ZeroDivisionError"),
        ("{{ prompt.__class__.__mro__ }}", {"prompt": "a"}, {}, "data.template: access to"),
        ("none", {"prompt": "a"}, {"system_prompt": "b"}, "system_prompt is set"),
        ("r1_zero", {"prompt": [{"role": "user", "content": "a"}]}, {}, "lists of messages"),
        ("none", {"prompt": [{"role": "user", "content": "a"}]}, {}, "no chat template"),
    ],
)
def test_rows_that_do_not_fit_are_one_line(name, row, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        render(name, row, **options)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_refuses_a_conversation_says_so():
    refusing = chat_tokenizer("{{ raise_exception('no system here') }}")
    with pytest.raises(ValueError, match="chat template refused a prompt: no system here"):
        render("chat", {"prompt": "a"}, refusing)
