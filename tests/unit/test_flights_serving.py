"""The flights model behind HTTP: what a request may hold, and that the answers are the model's."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rallypoint.examples.flights import data, encoding, features, model, preprocessing, serving

pd = pytest.importorskip("pandas")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("starlette")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model with random weights, and some flights of one month."""
    root = tmp_path_factory.mktemp("serving")
    frame = preprocessing.flights_frame(range(11, 12), 0.02).compute(scheduler="sync")
    (root / "test").mkdir()
    frame.to_parquet(root / "test" / "part-00000.parquet", index=False)
    encoder = encoding.Encoder.fit(frame, least=3)
    config = model.ModelConfig(tuple(encoder.cardinalities), len(features.NUMERIC))
    torch.manual_seed(0)
    for name in ("model", "another"):
        (root / name).mkdir()
        model.save_model(str(root / name), model.build_model(config).state_dict(), config, encoder)
    return {name: (root / name).as_uri() for name in ("test", "model", "another")}


@pytest.fixture(scope="module")
def replica(folders):
    return serving.LateFlights(folders["model"])


@pytest.fixture(scope="module")
def flights(folders):
    return serving.as_flights(data.read_partitions(folders["test"]).head(50))


class Request:
    def __init__(self, body, method="POST"):
        self.method, self._body = method, body if isinstance(body, bytes) else json.dumps(body).encode()

    async def body(self):
        return self._body


async def ask(replica, body, method="POST"):
    answer = await replica(Request(body, method))
    return answer.status_code, json.loads(answer.body)


async def test_one_flight_and_a_list_get_the_models_own_probabilities(replica, flights, folders):
    expected = model.SavedModel.load(folders["model"]).predict(data.read_partitions(folders["test"]).head(50))
    status, answer = await ask(replica, flights)
    assert status == 200
    assert np.abs(np.array(answer["probabilities"]) - expected).max() <= 1e-6
    status, answer = await ask(replica, flights[7])
    assert status == 200
    assert abs(answer["probability"] - expected[7]) <= 1e-6


async def test_unknown_values_are_null_or_new(replica, flights):
    unknown = dict.fromkeys(flights[0])
    status, answer = await ask(replica, unknown | {"carrier": "ZZ"})
    assert status == 200
    assert 0 < answer["probability"] < 1


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (lambda _: b"{", 400, "no JSON"),
        (lambda _: b'{"temp": NaN}', 400, "NaN is no JSON"),
        (lambda _: b"", 400, "no JSON"),
        (lambda _: [], 400, "a list of one or more"),
        (lambda _: 3, 400, "a flight as a JSON object"),
        (lambda flight: [flight, 3], 422, "flight 1: got int, expected an object of features"),
        (lambda flight: {"carrier": "UA"}, 422, "got no "),
        (lambda flight: flight | {"arr_delay": 3}, 422, "got arr_delay, which no flight has"),
        (lambda flight: flight | {"temp": "warm"}, 422, "got 'warm' for temp, expected a number or null"),
        (lambda flight: flight | {"temp": True}, 422, "expected a number or null"),
        (lambda flight: flight | {"hour": 5.5}, 422, "got 5.5 for hour, expected a whole number or null"),
        (lambda flight: flight | {"carrier": 7}, 422, "got 7 for carrier, expected text or null"),
        (lambda flight: [flight] * (serving.MAX_FLIGHTS + 1), 413, "send several requests"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(replica, flights, change, status, message):
    body = change(flights[0])
    found, answer = await ask(replica, body)
    assert found == status
    assert message in answer["error"]


async def test_only_post_is_answered(replica):
    assert (await ask(replica, b"", method="GET"))[0] == 405


def test_arguments_of_another_kind_are_refused():
    pytest.importorskip("ray.serve")
    with pytest.raises(ValueError, match="expected"):
        serving.app({"uri": "file:///m"})


# The check -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(replica):
    """An HTTP endpoint over a replica; `broken` makes it refuse."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows, single = serving.parse(self.rfile.read(int(self.headers["Content-Length"])))
            answers = replica.predict(rows)
            self.send_response(500 if self.server.broken else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"probability": answers[0]} if single else {"probabilities": answers}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.broken = False
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_check_asks_for_real_flights_and_shows_one(endpoint, folders):
    found = serving.smoke(endpoint.url, folders["model"], folders["test"], rows=20)
    assert found["rows"] == 20
    assert found["max_difference"] <= 1e-6
    assert set(found["example"]["request"]) == {*features.SOURCES, *features.NUMERIC}
    assert 0 < found["example"]["answer"]["probability"] < 1
    json.dumps(found)


def test_another_model_behind_the_endpoint_is_found_out(endpoint, folders):
    with pytest.raises(ValueError, match="is another model served"):
        serving.smoke(endpoint.url, folders["another"], folders["test"], rows=5)


def test_an_endpoint_that_refuses_or_is_not_there_is_named(endpoint, folders):
    endpoint.broken = True
    with pytest.raises(RuntimeError, match="answered 500 to a flight"):
        serving.smoke(endpoint.url, folders["model"], folders["test"], rows=5)
    with pytest.raises(RuntimeError, match=r"nothing answered at http://127\.0\.0\.1:1/"):
        serving.smoke("http://127.0.0.1:1/", folders["model"], folders["test"], rows=5)
    with pytest.raises(ValueError, match="expected an http"):
        serving.smoke("ftp://127.0.0.1/", folders["model"], folders["test"], rows=5)
