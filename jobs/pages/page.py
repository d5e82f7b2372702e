"""render_page: a page of sections and figures in one self-contained HTML file."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from jobs.pages.template import fill


def render_page(template: str, title: str, subtitle: str, sections: Mapping[str, str], **values: Any) -> str:
    """Render a template that extends ``page.html``.

    Args:
        template: file name in ``jobs/pages/templates``.
        title: name of the page.
        subtitle: sentence below it.
        sections: anchor -> title of each section, in order; the template has a block with the anchor's name.
        values: variables of the template's blocks.
    """
    library = Markup(get_plotlyjs())  # nosec B704
    return fill(template, title=title, subtitle=subtitle, sections=sections, library=library, **values)
