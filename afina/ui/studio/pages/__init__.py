"""The pages, a file each: to add one is to add a file that gives a `PAGE`, its template and its texts."""

from afina.core.registry import Registry
from afina.ui.studio.view import Page

PAGES: Registry[Page] = Registry("afina.ui.studio.pages", "PAGE", "page")
