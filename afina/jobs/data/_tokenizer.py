"""The tokenizer by which the jobs on data count."""

from pathlib import Path

from afina.core.config import Settings, setting
from afina.core.device import cache_folder
from afina.core.text import shell_word
from afina.data.fitting import DEFAULT_MAX_LENGTH
from afina.data.settings import DataSettings
from afina.models.load import load_tokenizer
from afina.models.sources.source import is_local
from afina.models.templates import read_template
from afina.models.tokenizer import Tokenizer

READING = ("path", "target", "text", "encoding", "prompt", "completion", "system", "map", "references")
"""The settings of data that decide what a row is."""


class TokenizerSettings(Settings):
    base: str = "starter"
    """Base model whose tokenizer counts, and whose control tokens no text may hold."""
    template: Path | None = None
    """File with a chat template (Jinja) in the place of the base's own."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


class PageSettings(TokenizerSettings):
    html: Path | None = setting(None, metavar="FILE")
    """Write a page with plots, too."""


def find_tokenizer(
    settings: TokenizerSettings, data: DataSettings, needed: bool = False
) -> tuple[Tokenizer | None, int]:
    """The base's tokenizer and the longest row; without a tokenizer where the base would have to be fetched first."""
    longest = data.max_length or DEFAULT_MAX_LENGTH
    template = read_template(settings.template)
    if not needed and not is_local(settings.base, cache_folder(settings.cache_dir)):
        return None, longest
    tokenizer, context = load_tokenizer(settings.base, cache_dir=settings.cache_dir, template=template)
    return tokenizer, min(longest, context)


def given_flags(settings: TokenizerSettings) -> str:
    """Those of the base and its template that were given, as they are typed."""
    named = {"--base": settings.base if settings.base != "starter" else None, "--template": settings.template}
    return "".join(f" {flag} {shell_word(str(value))}" for flag, value in named.items() if value is not None)
