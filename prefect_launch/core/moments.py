"""Moments in words, always with their zone: in UTC where readers sit anywhere (the server's messages, a log), in this
machine's zone where its user reads them."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_time(moment: datetime) -> str:
    """Return a moment such as `2026-05-04 12:05:00 UTC`."""
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def local_time(moment: datetime) -> str:
    """Return a moment in this machine's zone, such as `2026-05-04 14:05:00 +02:00`."""
    here = moment.astimezone()
    return f"{here:%Y-%m-%d %H:%M:%S} {_zone(here)}"


def utc_minute(moment: datetime) -> str:
    """Return a moment to the minute, such as `12:05 UTC`; with its date when that is not today's."""
    return _minute(moment.astimezone(timezone.utc))


def local_minute(moment: datetime) -> str:
    """Return a moment to the minute in this machine's zone; with its date when that is not today's."""
    return _minute(moment.astimezone())


def _minute(moment: datetime) -> str:
    is_today = moment.date() == datetime.now(timezone.utc).astimezone(moment.tzinfo).date()
    return f"{moment:{'%H:%M' if is_today else '%Y-%m-%d %H:%M'}} {_zone(moment)}"


def _zone(moment: datetime) -> str:
    return moment.isoformat()[-6:] if moment.utcoffset() else "UTC"
