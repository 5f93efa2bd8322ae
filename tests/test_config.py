"""What the environment says of files and folders."""

from __future__ import annotations

from restow import config


def test_paths_are_meant_from_where_the_command_was_given(tmp_path, monkeypatch):
    """Daemons have another working directory."""
    monkeypatch.chdir(tmp_path)
    said = config.absolute_paths({"RESTOW_DEVICES": "devices.json", "RESTOW_RUN": "/run/x", "RESTOW_SHM": "", "OTHER": "y"})
    assert said == {"RESTOW_DEVICES": str(tmp_path / "devices.json"), "RESTOW_RUN": "/run/x"}
