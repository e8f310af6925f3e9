"""What is written down and shipped before a launch: an attempt's record, and the gang with what makes it a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rallypoint.spec.gang import Secret
from rallypoint.stages.ledger import Ledger, Record
from rallypoint.stages.rule import Intent, wanted
from rallypoint.worker import context

if TYPE_CHECKING:
    from rallypoint.spec.gang import Gang
    from rallypoint.spec.job import Job
    from rallypoint.stages.attempt import Request
    from rallypoint.stages.ledger import Entry
    from rallypoint.stages.rule import Decision


def intent_of(last: Entry | None, request: Request, *, service: bool, changed: tuple[str, ...]) -> Intent:
    """Return what is wanted of a stage, given its last attempt and what a try asks for.

    A person cleared the stage if the orchestrator counts more re-runs than when the last attempt started.
    """
    if last is None:
        return request.intent
    before, now = last.record.marker, request.marker
    cleared = before is not None and now is not None and now > before
    return wanted(request.intent, cleared=cleared, forgotten=last.rerun_asked, service=service, changed=bool(changed))


def next_record(  # noqa: PLR0913 - each comes from somewhere else
    ledger: Ledger, last: Entry | None, job: Job, gang: Gang, *, request: Request, decision: Decision, launcher: str
) -> Record:
    """Return the intent of the attempt that comes after the last one.

    Args:
        ledger: The stage's ledger.
        last: Its last attempt.
        job: The job.
        gang: What it compiles to.
        request: What the try asks for.
        decision: Why there is a new attempt.
        launcher: The URI of the launcher that it will run on.
    """
    number = last.record.number + 1 if last else 1
    generation = (last.record.generation + (0 if decision.from_checkpoint else 1)) if last else 1
    return Record(
        number=number,
        id=ledger.key.attempt_id(number),
        generation=generation,
        resumed=decision.from_checkpoint,
        kind=job.kind,
        fingerprint=job.fingerprint(),
        launcher=launcher,
        owner=request.owner,
        marker=request.marker,
        why=decision.why,
        failure_rules=tuple(rule.to_json() for rule in job.rules),
        service=gang.service,
        lease=gang.lease,
        uses=tuple(ref.to_json() for ref in job.services()),
    )


def as_stage(ledger: Ledger, gang: Gang, job: Job, record: Record) -> Gang:
    """Return the gang with what its processes have to know of their stage."""
    store = ledger.store
    stage = context.StageContext(
        stage=ledger.key.parts,
        attempt=record.id,
        number=record.number,
        generation=record.generation,
        resumed=record.resumed,
        data_uri=store.child_uri(ledger.data_prefix(record.generation)),
        params=dict(job.params),
        keep_checkpoints=job.keep_checkpoints,
        store_uri=store.uri,
    )
    lease = {context.LEASE_URI: store.child_uri(ledger.lease_path(record.number))} if gang.lease else {}
    bucket = store.local_path is None
    logs = {context.LOGS_URI: store.child_uri(ledger.logs_prefix(record.number))} if bucket else {}
    return gang.with_more(
        files={"stage.json": stage.to_json().encode()},
        env={
            context.STAGE_FILE: "${rallypoint:run_dir}/stage.json",
            context.EVENTS_URI: store.child_uri(ledger.events_prefix(record.number)),
            **logs,
            **lease,
        },
        secrets={name: Secret(value) for name, value in store.job_env().items()},
    )
