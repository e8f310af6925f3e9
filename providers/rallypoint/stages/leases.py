"""Renews leases: of a service while somebody waits for it, and of the services that a watched attempt uses."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from rallypoint.errors import StoreError
from rallypoint.spec.service import SERVICE, USES, ServiceRef
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger
from rallypoint.stages.store import Store

if TYPE_CHECKING:
    from rallypoint.stages.ledger import Record
    from rallypoint.stages.view import AttemptView

log = logging.getLogger(__name__)

_SHARE = 0.1  # of a lease that passes between two renewals


class LeaseKeeper:
    """Keeps leases alive for as long as `renew` is called.

    Args:
        store: The watcher's own store, with its credentials. A service in another one is renewed with what the
            environment gives.
        refs: The services; those without a lease are left out.
    """

    def __init__(self, store: Store, refs: tuple[ServiceRef, ...]) -> None:
        self._store = store
        self._due = {ref: 0.0 for ref in refs if ref.lease is not None}

    async def renew(self) -> None:
        """Renew what is due; called at every look. What cannot be renewed is said and tried again.

        A service that has ended is no longer asked for: the stage that uses it finds that out in its own words.
        """
        for ref, due in list(self._due.items()):
            if ref.lease is None or time.monotonic() < due:
                continue
            self._due[ref] = time.monotonic() + ref.lease * _SHARE
            try:
                store = self._store if ref.store == self._store.uri else Store.open(ref.store)
                there = await Ledger(store, StageKey(ref.stage)).renew(ref.attempt)
            except (StoreError, OSError) as error:
                log.warning("the lease of %s could not be renewed: %s", "/".join(ref.stage), error)
                continue
            if not there:
                del self._due[ref]
                log.warning("the service %s (attempt %d) has ended", "/".join(ref.stage), ref.attempt)


def kept_by(store: Store, key: StageKey, record: Record) -> tuple[ServiceRef, ...]:
    """Return the services that live on while an attempt is watched: itself, if it is one, and what it uses."""
    used = tuple(ServiceRef.from_json(each) for each in record.uses)
    return (_reference(store, key, record), *used) if record.service else used


def address_of(store: Store, key: StageKey, record: Record, view: AttemptView) -> dict[str, Any]:
    """Return the address object of a service that is ready: what it said, and whose leases its users renew."""
    said = view.ready or {}
    return {**said, SERVICE: _reference(store, key, record).to_json(), USES: [dict(each) for each in record.uses]}


def _reference(store: Store, key: StageKey, record: Record) -> ServiceRef:
    return ServiceRef(store=store.uri, stage=key.parts, attempt=record.number, lease=record.lease)
