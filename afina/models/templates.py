"""Chat templates for bases that come without one, chosen by the control tokens in the vocabulary."""

from collections.abc import Iterable

# Where no format is recognised: each text on a line of its own, the answer ended by eos.
PLAIN = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)

_BEGIN = "{{ bos_token }}"
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA_3 = (
    _BEGIN + "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Gemma has no system role: the system's message begins the first question.
_GEMMA = (
    _BEGIN + "{% set told = namespace(text='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set told.text = m['content'] + '\n\n' %}"
    "{% else %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + told.text"
    " + m['content'] + '<end_of_turn>\n' }}"
    "{% set told.text = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_FORMATS = (
    ({"<|im_start|>", "<|im_end|>"}, _CHATML),
    ({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, _LLAMA_3),
    ({"<start_of_turn>", "<end_of_turn>"}, _GEMMA),
    ({"<|user|>", "<|assistant|>", "<|end|>"}, _PHI_3),
)


def template_for(control_texts: Iterable[str], has_bos: bool) -> str:
    """The template of the chat format that these control tokens belong to; the plain one where none is recognised."""
    controls = set(control_texts)
    template = next((template for tokens, template in _FORMATS if tokens <= controls), PLAIN)
    return template if has_bos else template.removeprefix(_BEGIN)
