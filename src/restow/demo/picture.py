"""The timeline as a picture: the gang's steps per second over time, and who sat on which device."""

from __future__ import annotations

from pathlib import Path

from restow.demo.result import Result, milliseconds, size
from restow.demo.show import PICTURE_COLOURS, colour_of
from restow.demo.timeline import Timeline
from restow.errors import SetupError, SpecError

ENDINGS = (".png", ".svg", ".pdf")


def check_name(path: Path) -> None:
    """Raises SpecError before the demo runs, not after."""
    if path.suffix not in ENDINGS:
        raise SpecError(f"--picture is {path}; its name must end in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"--picture is {path}; the folder {path.absolute().parent} does not exist")


def draw(timeline: Timeline, names: tuple[str, ...], gang: str, result: Result, path: Path) -> None:
    """Write the picture. Raises SetupError when matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display needed, no global state
        from matplotlib.figure import Figure
    except ImportError:
        raise SetupError("a picture needs matplotlib; pip install 'restow[demo]'") from None

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    speed_axes, device_axes = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    move, move_s = result.move, timeline.move_s

    points = timeline.speeds(gang)
    speed_axes.plot(
        [t for t, _ in points], [s for _, s in points], color=_hex(names, gang), linewidth=2, label="measured"
    )
    end_s = max((stay.end_s for stay in timeline.stays()), default=0.0)
    if move_s is not None and move["step_predicted_s"]:
        predicted = 1 / move["step_predicted_s"]
        speed_axes.hlines(
            predicted, move_s, end_s, color="grey", linewidth=1, linestyle="--", label="predicted before the move"
        )
    speed_axes.set_ylabel(f"steps per second of {gang}")
    speed_axes.set_ylim(bottom=0)
    speed_axes.legend(loc="center left", frameon=False)
    identical = "bit-identical to the run that never moved" if result.comparison.is_identical else "NOT bit-identical"
    speed_axes.set_title(
        f"A running job, moved from {' and '.join(move['now'])} to {' and '.join(move['then'])}: "
        f"{milliseconds(move['downtime_s'])} of downtime,\n{size(move['wire_bytes'])} over the wire, "
        f"{move['lost_steps']} steps lost, {identical}",
        loc="left",
        fontsize=11,
    )

    devices = sorted({stay.device for stay in timeline.stays()})
    for stay in timeline.stays():
        row = devices.index(stay.device)
        length_s = max(stay.end_s - stay.begin_s, 0.05)
        device_axes.broken_barh(
            [(stay.begin_s, length_s)],
            (row - 0.4, 0.8),
            facecolors=_hex(names, stay.job),
            edgecolor="white",
            alpha=0.4 if stay.is_twin else 1.0,
            hatch="///" if stay.is_twin else None,
        )
        if length_s > 3 and not stay.is_twin:
            device_axes.text(
                stay.begin_s + length_s / 2, row, stay.job, ha="center", va="center", color="white", fontsize=9
            )
    device_axes.set_yticks(range(len(devices)), [str(device) for device in devices])
    device_axes.invert_yaxis()
    device_axes.set_xlabel("seconds since the demo began (hatched: a twin that rehearses and waits)")
    if move_s is not None:
        for axes in (speed_axes, device_axes):
            axes.axvline(move_s, color="black", linewidth=1)
        speed_axes.annotate(
            "moved, while it trains",
            (move_s, 0.06),
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
        )
    for axes in (speed_axes, device_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _hex(names: tuple[str, ...], name: str) -> str:
    return PICTURE_COLOURS.get(colour_of(names, name), "#888888")
