"""fill: HTML from the templates beside this module, with every value escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobs.pages.values import Mark, shown

LONG = 36
"""Characters of a table's cell beyond which its text is wrapped."""


def fill(template: str, **values: Any) -> str:
    """Render a template.

    The environment escapes every text, so that a feature called ``<script>`` is shown as its name.

    Args:
        template: file name in ``jobs/pages/templates``.
        values: variables of the template; a name that is missing raises ``jinja2.UndefinedError``.
    """
    return _ENVIRONMENT.get_template(template).render(values)


def _drawn(figure: Any) -> Markup:
    """Make the HTML element of a figure; the page must hold Plotly's library."""
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    height = f"{figure.to_dict()['layout'].get('height', 320)}px"
    html = figure.to_html(full_html=False, include_plotlyjs=False, config=config, default_height=height)
    # Plotly writes a figure's texts as JSON in a script, with < and > as escapes.
    return Markup(html)  # nosec B704


def _is_mark(value: Any) -> bool:
    return isinstance(value, Mark)


_ENVIRONMENT = Environment(
    loader=PackageLoader("jobs.pages"),  # finds them in a wheel and in a zip, too
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"shown": shown, "drawn": _drawn}
_ENVIRONMENT.tests |= {"mark": _is_mark}
_ENVIRONMENT.globals |= {"LONG": LONG}
