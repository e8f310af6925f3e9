"""The last stages: the model behind HTTP on Ray Serve, and the check that it answers as evaluated.

``POST /`` takes one flight, a JSON object of its features, or a list of flights. Features are those of
`preprocess`, outcome left out. The answer to one is ``{"probability": 0.31}``, of being more than 15 minutes late, and
to a list ``{"probabilities": [0.31, …]}``; a request that is wrong gets a status from 400 to 422 and ``{"error": …}``.

Ray is imported by `app` alone, which runs on the cluster.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import statistics
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import read_partitions
from rallypoint.examples.flights.features import NUMERIC, SOURCES
from rallypoint.examples.flights.model import SavedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd

MAX_FLIGHTS = 10_000  # of one request
_MAX_BODY = 32 << 20  # bytes
_INTEGERS = frozenset({"hour", "weekday"})  # of the categorical features; the others are text
_COLUMNS = (*SOURCES, *NUMERIC)
_SHOWN = 10  # names in an error
_TIMEOUT = 60.0  # seconds


class RequestError(ValueError):
    """A request that cannot be answered.

    Args:
        status: The HTTP status.
        message: What is wrong with it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LateFlights:
    """One replica: the model, loaded once.

    Args:
        model: The URI of the artifact ``model``.
    """

    def __init__(self, model: str) -> None:
        self._model = SavedModel.load(model)

    async def __call__(self, request: Any) -> Any:
        """Answer one HTTP request.

        Args:
            request: Serve's request: its method, and its body when that is awaited.
        """
        from starlette.responses import JSONResponse

        if request.method != "POST":
            text = f"got {request.method}, expected POST"
            return JSONResponse({"error": text}, status_code=http.client.METHOD_NOT_ALLOWED, headers={"Allow": "POST"})
        try:
            flights, single = parse(await request.body())
        except RequestError as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)
        # Of one request all rows go through the network together; a thread leaves the loop free for the others.
        answers = await asyncio.to_thread(self.predict, flights)
        return JSONResponse({"probability": answers[0]} if single else {"probabilities": answers})

    def predict(self, flights: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the probability of being late for each flight."""
        probabilities: list[float] = self._model.predict(as_frame(flights)).tolist()
        return probabilities


def app(args: dict[str, Any]) -> Any:
    """Return the application; Serve calls this on the cluster.

    Args:
        args: ``{"model": uri}``, as `train` or the tuned model's stage returned it.

    Raises:
        ValueError: The model's URI is missing, or there is something else.
    """
    from ray import serve

    if set(args) != {"model"} or not isinstance(args["model"], str):
        msg = f'got the arguments {args!r}, expected {{"model": "file:///…"}}'
        raise ValueError(msg)
    deployment: Any = serve.deployment(name="LateFlights")(LateFlights)
    return deployment.bind(model=args["model"])


# Requests ------------------------------------------------------------------------------------------------------------


def parse(body: bytes) -> tuple[list[dict[str, Any]], bool]:
    """Return the flights of a request, and whether it was a single one.

    Args:
        body: JSON: an object, or a list of objects.

    Raises:
        RequestError: It is something else.
    """
    if len(body) > _MAX_BODY:
        raise RequestError(
            http.client.REQUEST_ENTITY_TOO_LARGE, f"got {len(body):,} bytes, expected {_MAX_BODY:,} at most"
        )
    try:
        value = json.loads(body, parse_constant=_refuse)
    except ValueError as error:
        raise RequestError(http.client.BAD_REQUEST, f"got a body that is no JSON: {error}") from error
    single = isinstance(value, dict)
    flights = [value] if single else value
    if not isinstance(flights, list) or not flights:
        raise RequestError(http.client.BAD_REQUEST, "expected a flight as a JSON object, or a list of one or more")
    if len(flights) > MAX_FLIGHTS:
        text = f"got {len(flights):,} flights, expected {MAX_FLIGHTS:,} at most: send several requests"
        raise RequestError(http.client.REQUEST_ENTITY_TOO_LARGE, text)
    for index, flight in enumerate(flights):
        if wrong := _fault(flight):
            where = "" if single else f"flight {index}: "
            raise RequestError(http.client.UNPROCESSABLE_ENTITY, f"{where}{wrong}")
    return flights, single


def as_frame(flights: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return flights as `preprocess` writes them: the same types, so that the encoder finds the same values."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in SOURCES:
        values = [flight[name] for flight in flights]
        columns[name] = pd.Series([int(each) if name in _INTEGERS and each is not None else each for each in values],
                                  dtype="object")  # fmt: skip
    for name in NUMERIC:
        columns[name] = pd.Series([flight[name] for flight in flights], dtype="float32")
    return pd.DataFrame(columns)


def as_flights(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as JSON objects, as a client sends them; missing values are null."""
    rows: list[dict[str, Any]] = json.loads(json.dumps(frame[list(_COLUMNS)].to_dict(orient="records"), default=_plain))
    return [{name: _null_for_nan(value) for name, value in row.items()} for row in rows]


def _fault(flight: object) -> str:  # noqa: PLR0911 - a case each
    """Return what is wrong with a flight, the empty string if nothing is."""
    if not isinstance(flight, dict):
        return f"got {type(flight).__name__}, expected an object of features"
    if missing := [name for name in _COLUMNS if name not in flight]:
        return f"got no {_names(missing)}; expected the features {', '.join(_COLUMNS)}, null where unknown"
    if unknown := sorted(flight.keys() - set(_COLUMNS)):
        return f"got {_names(unknown)}, which no flight has; expected the features {', '.join(_COLUMNS)}"
    for name, value in flight.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name in NUMERIC and value is not None and not number:
            return f"got {value!r:.80} for {name}, expected a number or null"
        if name in _INTEGERS and not (value is None or (number and float(value).is_integer())):
            return f"got {value!r:.80} for {name}, expected a whole number or null"
        if name in SOURCES and name not in (*NUMERIC, *_INTEGERS) and not isinstance(value, str | None):
            return f"got {value!r:.80} for {name}, expected text or null"
    return ""


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _refuse(word: str) -> None:
    msg = f"{word} is no JSON"
    raise ValueError(msg)


def _plain(value: Any) -> Any:
    return value.item()  # of numpy


def _null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# The check -----------------------------------------------------------------------------------------------------------


def smoke(endpoint_url: str, model_uri: str, test_uri: str, rows: int = 100, tolerance: float = 1e-6) -> dict[str, Any]:
    """Ask the endpoint for real flights, one by one and together, and compare with the evaluated model's own answers.

    Args:
        endpoint_url: Where the application is served, as the deploy's result says.
        model_uri: The artifact that was evaluated and is meant to be served.
        test_uri: The folder of the test months.
        rows: How many flights to ask for.
        tolerance: How far two probabilities may be apart.

    Returns:
        The number of ``rows``, the ``max_difference`` of single and batched answers, the median ``latency_ms`` of a
        single request, and an ``example`` with its ``request`` and ``answer``.

    Raises:
        ValueError: An answer is not the model's.
        RuntimeError: The endpoint refused a request, or did not answer.
    """
    import numpy as np

    test = read_partitions(test_uri)
    frame = test.iloc[np.unique(np.linspace(0, len(test) - 1, rows).astype("int64"))].reset_index(drop=True)
    expected = SavedModel.load(model_uri).predict(frame)
    flights, single, seconds = as_flights(frame), [], []
    for count, flight in enumerate(flights, start=1):
        began = time.monotonic()
        single.append(_ask(endpoint_url, flight)["probability"])
        seconds.append(time.monotonic() - began)
        rallypoint.stage().report(step=count, total=len(flights), unit="flight")
    batched = _ask(endpoint_url, flights)["probabilities"]
    worst = max(_worst("single", single, expected, tolerance), _worst("batched", batched, expected, tolerance))
    latency = round(statistics.median(seconds) * 1000, 2)
    rallypoint.stage().report(max_difference=worst, latency_ms=latency)
    example = {"request": flights[0], "answer": {"probability": single[0]}}
    print(f"{len(flights)} flights, single and batched: at most {worst:.1e} from the model; {latency:g} ms each")  # noqa: T201 - the stage's log
    print(f"POST {endpoint_url}\n{json.dumps(example['request'])}\n{json.dumps(example['answer'])}")  # noqa: T201 - likewise
    return {"rows": len(flights), "max_difference": worst, "latency_ms": latency, "example": example}


def _ask(url: str, body: object) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")  # noqa: S310 - below
    if request.type not in ("http", "https"):
        msg = f"got the endpoint {url!r}, expected an http:// or https:// address, as the deploy's result has"
        raise ValueError(msg)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - just checked
            value: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")[:500]
        msg = f"{url} answered {error.code} to a flight of the test months: {text}"
        raise RuntimeError(msg) from error
    except (urllib.error.URLError, OSError) as error:
        msg = f"nothing answered at {url}: {error}; is the application deployed, and its proxy reached from here"
        raise RuntimeError(msg) from error
    return value


def _worst(how: str, got: Sequence[float], expected: np.ndarray[Any, Any], tolerance: float) -> float:
    import numpy as np

    if len(got) != len(expected):
        msg = f"got {len(got)} {how} answers, expected {len(expected)}"
        raise ValueError(msg)
    difference = np.abs(np.asarray(got, dtype="float64") - expected.astype("float64"))
    worst = int(difference.argmax())
    if not difference[worst] <= tolerance:
        msg = (
            f"the endpoint's {how} answer to flight {worst} is {got[worst]:.8f}, expected the model's "
            f"{float(expected[worst]):.8f} within {tolerance:g}: is another model served?"
        )
        raise ValueError(msg)
    return float(difference[worst])
