"""What a pipeline is: the frozen data that every verb takes; ``pgsnap.Pipeline`` has these and the verbs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

import attrs

from pgsnap.components.contracts import Component, Dumper, Notifier, Store, Transform
from pgsnap.components.values import RetentionPolicy, check_name, without_userinfo
from pgsnap.errors import ConfigError
from pgsnap.repository.guard import Guard
from pgsnap.stores.timeouts import Limits, TimeLimitedStore
from pgsnap.streams import Stalled, Watchdog

__all__ = ["PipelineSpec"]

LINK_SECONDS = 2.0
"""Seconds that finding out where a path leads may take."""


def _stores(given: Iterable[Store | str | os.PathLike[str]]) -> tuple[Store, ...]:
    from pgsnap.stores import LocalStore

    stores: list[Store] = []
    for item in given:
        if isinstance(item, Store):
            stores.append(item)
            continue
        path = os.fspath(item)
        if "://" in path:
            raise ConfigError(
                f"{path.partition('://')[0]}://… is given as a plain string; a string is a local path. "
                "Use a store class, such as FsspecStore(url=…)."
            )
        stores.append(LocalStore(url=path))
    return tuple(stores)


def _place(store: Store) -> str:
    """Return the same text for two spellings of one place, such as a path and a link to it."""
    from pgsnap.stores import LocalStore

    if isinstance(store, LocalStore):
        with contextlib.suppress(ConfigError, Stalled):  # on a mount whose server is gone, to follow a link takes for ever
            return Watchdog().call(lambda: os.path.realpath(store.root), LINK_SECONDS)
    return store.url.rstrip("/")


def _transforms(given: Iterable[Transform]) -> tuple[Transform, ...]:  # bare ``tuple`` hides the type from type checkers
    return tuple(given)


def _notifiers(given: Iterable[Notifier]) -> tuple[Notifier, ...]:
    return tuple(given)


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ConfigError(f"{attribute.name} is {value:g}; give a number of seconds above 0.")


@attrs.frozen(kw_only=True)
class PipelineSpec:
    """What to dump, what to do with the bytes, where to keep them and whom to tell.

    It holds no connection and no registry, and pickles, so that it can run in another process.

    Args:
        name: Names the folder in every store.
        dump: What is dumped.
        transforms: In the order in which the bytes pass them.
        stores: Where the backup goes; a plain string is a local path.
        notifiers: Told about events.
        quorum: A run in fewer stores than this has failed, though what it did keep stays.
        timeout: Seconds after which a run is aborted; None: never.
        keep: The retention policy of every store that has none of its own.
        timezone: In which days, weeks and months of the policy, and the schedule, are counted.
        schedule: When ``pgsnap schedule`` runs it: a cron line such as ``0 8 * * *``.
        auto_prune: Prune after each good backup, in the stores that hold it. Off for keys that may not list or delete.
        guard: When a backup is suspect because it is so much smaller than those before.
        stall_timeout: Seconds a store may take nothing while its buffer is full, or give nothing more of what is read from it,
            before it is dropped.
        finish_timeout: Seconds a store has to complete an object after its last byte.
        answer_timeout: Seconds a store may take to answer: a small file, a deletion, the next entries of a listing. One that
            gives no answer holds a dump up for so long, and is dropped.
        buffer: Bytes held for each store.
        catch_up_timeout: Seconds that a run may copy, after its commit, to stores that lack backups; 0: not at all.
        notify_timeout: Seconds that all messages of one run may take together.
        summary: How often a "still alive" message is sent: by the first run of a day, week or month in the time zone.
    """

    name: str = attrs.field()
    dump: Dumper
    transforms: tuple[Transform, ...] = attrs.field(default=(), converter=_transforms)
    stores: tuple[Store, ...] = attrs.field(converter=_stores)
    notifiers: tuple[Notifier, ...] = attrs.field(default=(), converter=_notifiers)
    quorum: int = attrs.field(default=1)
    timeout: float | None = attrs.field(default=None, validator=_seconds, metadata={"unit": "seconds"})
    keep: RetentionPolicy | None = None
    timezone: str = attrs.field(default="UTC")
    schedule: str | None = attrs.field(default=None)
    auto_prune: bool = True
    guard: Guard = attrs.field(factory=Guard)
    stall_timeout: float = attrs.field(default=300.0, validator=_seconds, metadata={"unit": "seconds"})
    finish_timeout: float = attrs.field(default=600.0, validator=_seconds, metadata={"unit": "seconds"})
    answer_timeout: float = attrs.field(default=120.0, validator=_seconds, metadata={"unit": "seconds"})
    buffer: int = attrs.field(default=8 << 20, metadata={"unit": "bytes"})
    catch_up_timeout: float = attrs.field(default=3600.0, metadata={"unit": "seconds"})
    notify_timeout: float = attrs.field(default=60.0, validator=_seconds, metadata={"unit": "seconds"})
    summary: Literal["never", "daily", "weekly", "monthly"] = attrs.field(default="never")

    @name.validator
    def _check_name(self, _: object, value: str) -> None:
        check_name(value, "the pipeline's name")

    @stores.validator
    def _check_stores(self, _: object, value: tuple[Store, ...]) -> None:
        places = [_place(store) for store in value] if len(value) > 1 else []
        for number, place in enumerate(places):
            if place in places[:number]:
                twice = dict.fromkeys([value[places.index(place)].label, value[number].label])
                raise ConfigError(f"the store {' and '.join(twice)} is given twice; two copies need two places.")

    @quorum.validator
    def _check_quorum(self, _: object, value: int) -> None:
        if not 1 <= value <= max(1, len(self.stores)):
            raise ConfigError(f"quorum is {value} and there are {len(self.stores)} stores; give a number from 1 to that.")

    @timezone.validator
    def _check_timezone(self, _: object, value: str) -> None:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ConfigError(f"timezone {value!r} is unknown; write it like 'Asia/Seoul' or 'UTC'.") from None

    @schedule.validator
    def _check_schedule(self, _: object, value: str | None) -> None:
        if value is None:
            return
        from cronsim import CronSim, CronSimError

        try:
            CronSim(value, datetime(2026, 1, 1))
        except CronSimError as error:
            said = str(error)[:1].lower() + str(error)[1:]
            raise ConfigError(f"schedule {value!r} is no cron line ({said}); write it like '0 8 * * *'.") from None

    @buffer.validator
    def _check_buffer(self, _: object, value: int) -> None:
        if value < 1 << 20:
            raise ConfigError(f"buffer is {value} bytes; give at least 1MiB.")

    @catch_up_timeout.validator
    def _check_catch_up(self, _: object, value: float) -> None:
        if not value >= 0:
            raise ConfigError(f"catch_up_timeout is {value:g}; give a number of seconds, or 0 for no catch-up.")

    @summary.validator
    def _check_summary(self, _: object, value: str) -> None:
        if value not in ("never", "daily", "weekly", "monthly"):
            raise ConfigError(f"summary is {value!r}; choose from never, daily, weekly, monthly.")

    def policy(self, store: Store) -> RetentionPolicy | None:
        """The retention policy of one of the stores: its own, or the pipeline's."""
        return self.keep if store.keep is None else store.keep

    def floor(self, store: Store) -> int:
        """How many of the newest good backups of a store are never deleted."""
        return (self.policy(store) or RetentionPolicy()).min_good

    @property
    def limits(self) -> Limits:
        """What is granted to each store."""
        return Limits(
            buffer=self.buffer,
            stall=self.stall_timeout,
            finish=self.finish_timeout,
            grace=min(30.0, self.stall_timeout),
            answer=self.answer_timeout,
        )

    @property
    def time_limited(self) -> Self:
        """The same pipeline with each call of a store bounded in time; whatever reads its stores begins with this.

        A store that gave no answer is known to what shares the result, and not asked again while the call is blocked.
        """
        return attrs.evolve(self, stores=[TimeLimitedStore.of(store, self.limits) for store in self.stores])

    def only(self, *stores: str) -> Self:
        """Return the same pipeline with only the stores of these labels (or URLs), in the pipeline's order; of none: with all.

        Raises:
            ConfigError: it has no store of that label.
        """
        if not stores:
            return self
        left = [self.stores[number] for number in sorted({self.position(text) for text in stores})]
        return attrs.evolve(self, stores=left, quorum=min(self.quorum, len(left)))

    def position(self, store: str) -> int:
        """Return the position of the store that has this label, or this URL.

        Raises:
            ConfigError: there is none.
        """
        for number, one in enumerate(self.stores):
            if store.rstrip("/") in (one.label.rstrip("/"), one.url.rstrip("/")):
                return number
        labels = ", ".join(one.label for one in self.stores)
        raise ConfigError(f"pipeline {self.name!r} has no store {without_userinfo(store)!r}; it has {labels}.")

    @property
    def components(self) -> Sequence[Component]:
        """All components, in the order of the bytes."""
        return (self.dump, *self.transforms, *self.stores, *self.notifiers)
