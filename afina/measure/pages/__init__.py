"""Results for people: report, model card, pages of data checks, plots, and results in words.

Comes in: the files of a run folder (`evaluation.json` and the others, as plain values). Goes out: HTML, Markdown and
sentences. `summary` words a result, `rendering` fills the templates in `templates/`, `plots` draws SVG; `report`,
`card` and `data_pages` compose.
Public: `write_report`, `write_card`, `render_page`, `verdict`, `table`.
"""
