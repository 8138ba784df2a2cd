"""What each field of a request does to the answer, over loopback, with OpenAI's own client."""

import math

import openai
import pytest

from tests.engines.serving.openai.served import HELLO, MODEL, QUESTIONS, ask, body_of, messages_of

WORDS = next(question for question in QUESTIONS if len(question.answer) > 3)


def text_of(answer, index=0):
    return answer.choices[index].message.content


def test_logprobs_are_of_the_tokens_of_the_text_and_the_likeliest_is_chosen(client):
    answer = ask(client, messages_of(WORDS), logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in told).decode() == text_of(answer)
    for token in told:
        assert len(token.top_logprobs) == 3
        assert (
            token.logprob == token.top_logprobs[0].logprob == max(one.logprob for one in token.top_logprobs)
        )
        assert sum(math.exp(one.logprob) for one in token.top_logprobs) <= 1 + 1e-6
    chunks = list(ask(client, messages_of(WORDS), logprobs=True, stream=True))
    streamed = [
        token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content
    ]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in told], abs=1e-4)
    assert all(token.top_logprobs == [] for token in streamed)


def test_without_the_wish_no_logprobs_are_told(client):
    assert ask(client, HELLO, max_tokens=2).choices[0].logprobs is None


def test_several_answers_are_those_that_each_seed_gets_alone(client):
    sampling = {"temperature": 1.5, "max_tokens": 12, "extra_body": {"top_k": 0}}
    together = ask(client, HELLO, n=3, seed=7, **sampling)
    alone = [text_of(ask(client, HELLO, seed=seed, **sampling)) for seed in (7, 8, 9)]
    assert [text_of(together, index) for index in range(3)] == alone
    assert len(set(alone)) == 3
    chunks = list(ask(client, HELLO, n=3, seed=7, stream=True, **sampling))
    pieces = dict.fromkeys(range(3), "")
    for chunk in chunks:
        pieces[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(pieces.values()) == alone
    assert together.usage.completion_tokens > 3


def test_a_bias_forces_a_token_and_a_token_of_ones_own_ends_the_answer_unheard(client):
    token = ask(client, HELLO, max_tokens=1, logit_bias={"33": 100}, logprobs=True)
    forced = text_of(token)
    assert forced
    assert token.choices[0].finish_reason == "length"
    ended = ask(client, HELLO, max_tokens=5, logit_bias={"33": 100}, extra_body={"stop_token_ids": [33]})
    assert text_of(ended) == ""
    assert ended.choices[0].finish_reason == "stop"
    assert text_of(ask(client, HELLO, max_tokens=4, logit_bias={"33": 100})) == forced * 4
    # A penalty of what was said breaks the row of equal tokens, no run of two among them the second time.
    free = ask(client, HELLO, max_tokens=6, logit_bias={"33": 100}, extra_body={"no_repeat_ngram_size": 2})
    assert forced * 3 not in text_of(free)
    xargs = {"vllm_xargs": {"no_repeat_ngram_size": 2}}
    assert text_of(ask(client, HELLO, max_tokens=6, logit_bias={"33": 100}, extra_body=xargs)) == text_of(
        free
    )


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 2.0}}],
    ids=str,
)
def test_a_penalty_makes_an_answer_say_more_different_things(client, penalty):
    # Some tokens are far above the others: which of them comes is left to the model, and to the penalty.
    likely = {str(token_id): 30 for token_id in range(33, 60)}
    extra = {"ignore_eos": True, **penalty.get("extra_body", {})}
    direct = {name: value for name, value in penalty.items() if name != "extra_body"}
    plain = ask(
        client, HELLO, max_tokens=16, logit_bias=likely, logprobs=True, extra_body={"ignore_eos": True}
    )
    other = ask(client, HELLO, max_tokens=16, logit_bias=likely, logprobs=True, extra_body=extra, **direct)

    def num_different(answer):
        return len({token.token for token in answer.choices[0].logprobs.content})

    assert num_different(other) > num_different(plain)


def test_an_answer_goes_on_past_its_end_where_that_is_asked(client):
    ended = ask(client, messages_of(WORDS), max_tokens=40)
    assert ended.usage.completion_tokens < 40
    longer = ask(client, messages_of(WORDS), max_tokens=40, extra_body={"ignore_eos": True})
    assert longer.usage.completion_tokens == 40
    assert longer.choices[0].finish_reason == "length"
    least = ask(client, messages_of(WORDS), max_tokens=40, extra_body={"min_tokens": 30})
    assert least.usage.completion_tokens >= 30


def test_special_tokens_are_told_where_that_is_asked(client):
    fields = {"ignore_eos": True, "skip_special_tokens": False}
    told = text_of(ask(client, messages_of(WORDS), max_tokens=40, extra_body=fields))
    hidden = text_of(ask(client, messages_of(WORDS), max_tokens=40, extra_body={"ignore_eos": True}))
    assert "<|im_end|>" in told
    assert "<|im_end|>" not in hidden


def test_min_p_of_one_is_greedy(client):
    greedy = text_of(ask(client, HELLO, max_tokens=8, temperature=0))
    sampled = ask(client, HELLO, max_tokens=8, temperature=2, extra_body={"top_k": 0, "min_p": 1.0})
    assert text_of(sampled) == greedy


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 17}, "n"),
        ({"vllm_xargs": {"beam": 2}}, "vllm_xargs.beam"),
        ({"tools": []}, "tools"),
        ({"response_format": {"type": "json"}}, "response_format"),
    ],
)
def test_a_field_out_of_range_or_without_its_partner_is_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"model": MODEL, "messages": HELLO, **fields}, cast_to=object)
    assert body_of(caught.value)["param"].startswith(param)


PICTURE = messages_of(next(question for question in QUESTIONS if question.images))


def test_budgets_of_a_request_are_those_of_its_pictures_that_have_none_of_their_own(client):
    def tokens(messages, **options):
        extra = {"mm_processor_kwargs": options} if options else {}
        return ask(client, messages, max_tokens=1, extra_body=extra).usage.prompt_tokens

    def with_own(**budget):
        [message] = PICTURE
        return [{**message, "content": [{**message["content"][0], **budget}, *message["content"][1:]]}]

    free, small = tokens(PICTURE), tokens(PICTURE, max_pixels=28 * 28 * 2)
    assert small < free
    assert small == tokens(with_own(max_pixels=28 * 28 * 2))
    assert tokens(with_own(resized_height=28, resized_width=28), max_pixels=28 * 28 * 9) == tokens(
        with_own(resized_height=28, resized_width=28)
    )
    assert tokens(PICTURE, fps=1.0, max_pixels=28 * 28 * 2) == small  # of a video alone
    video = messages_of(next(question for question in QUESTIONS if question.videos))
    assert tokens(video, nframes=2) < tokens(video)


@pytest.mark.parametrize(
    ("options", "param", "text"),
    [
        ({"size": {"shortest_edge": 1}}, "mm_processor_kwargs.size", "nothing here follows it"),
        ({"max_pixels": 1 << 30}, "messages", "max_pixels"),
        ({"max_pixels": "many"}, "mm_processor_kwargs.max_pixels", "integer"),
        ({"fps": 1.0, "nframes": 4}, "mm_processor_kwargs", "exclude each other"),
        ({"resized_height": 28}, "mm_processor_kwargs", "need each other"),
    ],
)
def test_budgets_out_of_bounds_or_unknown_are_refused_by_name(client, options, param, text):
    body = {"model": MODEL, "messages": PICTURE, "mm_processor_kwargs": options}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert body_of(caught.value)["param"] == param
    assert text in body_of(caught.value)["message"]
