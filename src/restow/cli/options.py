"""Options that many commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

json_option: Callable[..., Any] = click.option("--json", "json_", is_flag=True, help="Write JSON instead of text.")
