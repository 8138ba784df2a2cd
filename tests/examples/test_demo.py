from dataclasses import replace
from pathlib import Path

import pytest

from engines.runtime.answer import Request
from engines.runtime.generate import collect_generations, generate_batch
from examples.demo import demo_questions
from examples.tiny.reference_sessions import open_reference
from export.checkpoint.generation_config import load_generation_config
from export.processor.processor import Processor

CHECKPOINT = Path("models/qwen2-vl-tiny")
QUESTIONS = demo_questions()


def test_the_demo_asks_about_a_picture_several_pictures_and_a_video():
    assert any(len(question.images) == 1 for question in QUESTIONS)
    assert any(len(question.images) > 1 for question in QUESTIONS)
    assert any(question.videos for question in QUESTIONS)


def test_a_question_names_its_media_and_its_prompt_on_the_command_line():
    question = replace(QUESTIONS[0], images=(Path("a.png"), Path("b.png")), videos=(), prompt="Which?")
    assert question.arguments() == ["--image", "a.png", "--image", "b.png", "--prompt", "Which?"]


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="models/qwen2-vl-tiny is not in this checkout")
def test_the_shipped_checkpoint_answers_every_demo_question_right():
    processor = Processor.from_directory(CHECKPOINT)
    config = load_generation_config(CHECKPOINT)
    messages = [[{"role": "user", "content": question.content()}] for question in QUESTIONS]
    requests = [Request(processor.inputs_from_messages(message), config) for message in messages]
    sessions = open_reference(CHECKPOINT, len(requests))
    generations = collect_generations(generate_batch(requests, *sessions, model=processor.config))
    said = [
        processor.tokenizer.decode(
            [t for t in generation.token_ids if t not in config.eos_token_ids], skip_special_tokens=False
        )
        for generation in generations
    ]
    assert said == [question.answer for question in QUESTIONS]
