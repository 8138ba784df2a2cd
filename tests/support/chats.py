"""The tokenizer, templates and conversations that the chat tests share."""

from pathlib import Path

from examples.random_checkpoint import write_checkpoint

# In the words of the published Qwen2-VL template, blocks with and without line ends of their own.
PUBLISHED_STYLE_TEMPLATE = """{% set image_count = namespace(value=0) %}{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}
{% set image_count.value = image_count.value + 1 %}
Picture {{ image_count.value }}: <|vision_start|><|image_pad|><|vision_end|>{% elif 'video' in content %}
<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}
<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TRIMMING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}:{% if message.content is string %}"
    "{{ message.content | trim }}{% else %}{% for part in message.content %}{{ part.text | trim | upper }}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)


def checkpoint(directory: Path) -> Path:
    """A tiny checkpoint: byte-level BPE with real merges, config, template and picture settings."""
    return write_checkpoint(directory, num_hidden_layers=1, vision_depth=1)
