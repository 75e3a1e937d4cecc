"""Templates of the files; every value goes through `sh` or `json`, so that none can break out."""

import json
import shlex
from pathlib import Path

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
_ENVIRONMENT.filters["sh"] = lambda value: shlex.quote(str(value))
# A JSON string is a YAML string, whatever it holds.
_ENVIRONMENT.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)


def render(template: str, spec: object, **values: object) -> str:
    """The text of a file in `templates/`.

    Args:
      template: name of the file.
      spec: whose fields the template may name.
      **values: what else it may name; they come before fields of the same name.
    """
    return _ENVIRONMENT.get_template(template).render(vars(spec) | values)
