"""Cluster mode against managers that answer as the documentation of YARN, Kubernetes and Spark says they do.

There is no YARN and no Kubernetes here: these are the documented shapes at the HTTP seam. A real standalone master is
in tests/integration/spark/test_spark_cluster_mode.py.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.spark import cluster_mode
from rallypoint.frameworks.spark.cluster_mode_apps import (
    ApplicationFailedError,
    ApplicationLostError,
    ManagerRefusedError,
    ManagerUnreachableError,
    OlderApplicationError,
    Phase,
    SetupError,
    SubmissionError,
)
from rallypoint.frameworks.spark.cluster_mode_http import Rest
from rallypoint.frameworks.spark.cluster_mode_kubernetes import Kubernetes, api_server, namespace_of
from rallypoint.frameworks.spark.cluster_mode_standalone import (
    Standalone,
    Submission,
    Submissions,
    addresses,
    request_of,
)
from rallypoint.frameworks.spark.cluster_mode_yarn import Yarn, resource_managers
from rallypoint.frameworks.spark.job import SparkJob
from rallypoint.spec.entry import Jar, Script

ATTEMPT, STAGE, OLD = "rp-train-0123456789-a2", "rp-train-0123456789", "rp-train-0123456789-a1"
SOON = 0.01  # seconds between two looks


class Api:
    """A REST API: answers by method and path, each a value, a status, or a function of the request."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                query = dict(parse_qsl(parts.query))
                api.asked.append((self.command, parts.path, query, json.loads(body) if body else None, self.headers))
                found = api.answers.get((self.command, parts.path), 404)
                found = found(query) if callable(found) else found
                code, headers = 200, {}
                if isinstance(found, tuple):
                    code, headers, found = found
                if isinstance(found, int):
                    code, found = found, {"RemoteException": {"message": f"no {parts.path}"}}
                data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the base class's names

            def log_message(self, *_):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def paths(self, method):
        return [path for asked, path, *_ in self.asked if asked == method]


@pytest.fixture
def api():
    made = Api()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def _nobody_asked_to_stop():
    cluster_mode._stop.clear()
    yield
    cluster_mode._stop.clear()


class Submit:
    """Stands for ``spark-submit``: notes the properties, and has something happen."""

    def __init__(self, then=lambda: None):
        self.properties = []
        self.then = then

    def __call__(self, properties):
        self.properties.append(dict(properties))
        self.then()


# YARN ----------------------------------------------------------------------------------------------------------------

APPS = "/ws/v1/cluster/apps"


def yarn_app(state="RUNNING", final="UNDEFINED", number=1, tags=ATTEMPT, **more):
    """An application as "ResourceManager REST API's: Cluster Application API" shows it."""
    return {
        "id": f"application_1476912658570_{number:04d}", "user": "ml", "name": "train", "queue": "default",
        "state": state, "finalStatus": final, "progress": 42.5, "trackingUI": "ApplicationMaster",
        "trackingUrl": "http://rm:8088/proxy/application_1476912658570_0001/", "diagnostics": "",
        "clusterId": 1476912658570, "applicationType": "SPARK", "applicationTags": f"{tags},{STAGE}",
        "startedTime": 1476913457320 + number, "finishedTime": 0, "amContainerLogs": "http://nm:8042/node/logs", **more,
    }  # fmt: skip


@pytest.fixture
def yarn(api):
    """A resource manager, and how its applications are set."""
    apps = []

    def listed(query):
        wanted = set(query["applicationTags"].split(","))
        states = query.get("states")
        found = [
            app for app in apps
            if wanted & set(app["applicationTags"].split(",")) and (not states or app["state"] in states.split(","))
        ]  # fmt: skip
        return {"apps": {"app": found} if found else None}

    def put(*new):
        apps[:] = new
        for app in new:
            api.answers["GET", f"{APPS}/{app['id']}"] = {"app": app}
            api.answers["PUT", f"{APPS}/{app['id']}/state"] = lambda _, app=app: app.update(state="KILLED") or (
                202, {}, {"state": "ACCEPTED"},
            )  # fmt: skip

    api.answers["GET", APPS] = listed
    api.put = put
    return api


def test_an_application_is_submitted_with_tags_by_which_it_is_found(yarn):
    submit = Submit(lambda: yarn.put(yarn_app("FINISHED", "SUCCEEDED")))
    found = cluster_mode.follow(Yarn([yarn.url], submit, tags="mine"), ATTEMPT, look_every=SOON)
    assert found["application"] == "application_1476912658570_0001"
    assert found["links"]["YARN application"].startswith("http://rm:8088/proxy/")
    assert submit.properties == [
        {"spark.yarn.tags": f"{ATTEMPT},{STAGE},mine", "spark.yarn.submit.waitAppCompletion": "false"}
    ]


def test_what_an_earlier_start_of_the_attempt_submitted_is_followed_and_nothing_is_submitted(yarn):
    app = yarn_app("ACCEPTED")
    yarn.put(app)
    answers = iter([{"state": "RUNNING"}, {"state": "FINISHED", "finalStatus": "SUCCEEDED"}])
    yarn.answers["GET", f"{APPS}/{app['id']}"] = lambda _: {"app": {**app, **next(answers)}}
    submit = Submit()
    assert cluster_mode.follow(Yarn([yarn.url], submit), ATTEMPT, look_every=SOON)["application"] == app["id"]
    assert submit.properties == []


def test_an_older_attempts_application_is_killed_before_anything_is_submitted(yarn):
    old = yarn_app("RUNNING", number=1, tags=OLD)
    yarn.put(old)

    def accepted():
        assert old["state"] == "KILLED"
        yarn.put(old, yarn_app("FINISHED", "SUCCEEDED", number=2))

    manager = Yarn([yarn.url], Submit(accepted), user="ml")
    assert cluster_mode.follow(manager, ATTEMPT, look_every=SOON)["application"].endswith("_0002")
    (kill,) = [each for each in yarn.asked if each[0] == "PUT"]
    assert (kill[1], kill[2], kill[3]) == (f"{APPS}/{old['id']}/state", {"user.name": "ml"}, {"state": "KILLED"})


@pytest.mark.parametrize(
    ("state", "final", "error"),
    [
        ("FINISHED", "FAILED", ApplicationFailedError),
        ("FINISHED", "KILLED", ApplicationFailedError),
        ("FINISHED", "UNDEFINED", ApplicationLostError),
        ("FINISHED", "", ApplicationLostError),
        ("FAILED", "FAILED", ApplicationFailedError),
        ("KILLED", "KILLED", ApplicationFailedError),
        ("A_NEW_STATE", "SUCCEEDED", ApplicationLostError),
    ],
)
def test_only_yarns_word_that_it_succeeded_is_a_success(yarn, state, final, error):
    yarn.put(yarn_app(state, final, diagnostics="Container killed by YARN for exceeding physical memory limits"))
    with pytest.raises(error, match=r"(?s)application_1476912658570_0001.*exceeding physical memory limits"):
        cluster_mode.follow(Yarn([yarn.url], Submit()), ATTEMPT, look_every=SOON)


def test_an_application_that_yarn_forgets_is_lost(yarn):
    app = yarn_app("RUNNING")
    yarn.put(app)
    yarn.answers["GET", f"{APPS}/{app['id']}"] = 404
    with pytest.raises(ApplicationLostError, match="no longer knows the application application_1476912658570_0001"):
        cluster_mode.follow(Yarn([yarn.url], Submit()), ATTEMPT, look_every=SOON)


def test_the_application_goes_on_while_the_resource_manager_does_not_answer(yarn, monkeypatch):
    monkeypatch.setattr(cluster_mode, "LOOK", SOON)
    app = yarn_app("RUNNING")
    yarn.put(app)
    answers = iter(
        [503, (200, {}, "<html>starting</html>"), {"app": {**app, "state": "FINISHED", "finalStatus": "SUCCEEDED"}}]
    )
    yarn.answers["GET", f"{APPS}/{app['id']}"] = lambda _: next(answers)
    assert cluster_mode.follow(Yarn([yarn.url], Submit()), ATTEMPT, look_every=SOON)["application"] == app["id"]


def test_a_stage_that_is_asked_to_end_kills_its_application(yarn):
    app = yarn_app("RUNNING")
    yarn.put(app)
    yarn.answers["GET", f"{APPS}/{app['id']}"] = lambda _: cluster_mode._stop.set() or {"app": app}
    with pytest.raises(cluster_mode.StoppedError, match=r"application_1476912658570_0001 is KILLED"):
        cluster_mode.follow(Yarn([yarn.url], Submit()), ATTEMPT, look_every=SOON)
    assert app["state"] == "KILLED"


def test_an_application_that_was_accepted_while_the_stage_was_ended_is_killed_too(yarn):
    app = yarn_app("ACCEPTED")

    def ended_half_way():
        yarn.put(app)
        cluster_mode._stop.set()
        raise SubmissionError("spark-submit was ended, because this stage was")

    with pytest.raises(cluster_mode.StoppedError):
        cluster_mode.follow(Yarn([yarn.url], Submit(ended_half_way)), ATTEMPT, look_every=SOON)
    assert app["state"] == "KILLED"


def test_the_active_one_of_two_resource_managers_is_asked(yarn):
    app = yarn_app("RUNNING", tags=OLD)
    yarn.put(app)
    standby = Api()
    there = {"Location": f"{yarn.url}{APPS}/{app['id']}/state?user.name=ml"}
    standby.answers["PUT", f"{APPS}/{app['id']}/state"] = (307, there, "This is standby RM")
    standby.answers["GET", APPS] = 503
    manager = Yarn([standby.url, yarn.url], Submit(), user="ml")
    assert [each.id for each in manager.older(ATTEMPT)] == [app["id"]]
    manager.kill(app["id"])
    assert app["state"] == "KILLED"
    standby.server.shutdown()
    standby.server.server_close()


def test_a_login_that_is_missing_is_named(api):
    api.answers["GET", APPS] = (401, {"WWW-Authenticate": "Negotiate"}, "Authentication required")
    with pytest.raises(ManagerRefusedError, match=r"Kerberos.*HTTP 401"):
        Yarn([api.url], Submit()).find(ATTEMPT)


def test_nothing_is_submitted_where_nobody_can_say_what_runs():
    submit = Submit()
    with pytest.raises(ManagerUnreachableError, match=r"YARN's resource manager cannot be reached"):
        cluster_mode.follow(Yarn(["http://127.0.0.1:9"], submit), ATTEMPT, look_every=SOON)
    assert submit.properties == []


def test_the_resource_managers_come_from_the_job_the_properties_or_the_site(tmp_path, monkeypatch):
    values = {
        "yarn.resourcemanager.ha.rm-ids": "rm1, rm2",
        "yarn.resourcemanager.hostname.rm1": "one",
        "yarn.resourcemanager.webapp.address.rm2": "two:1234",
    }
    rows = "".join(f"<property><name>{name}</name><value>{value}</value></property>" for name, value in values.items())
    (tmp_path / "yarn-site.xml").write_text(f"<configuration>{rows}</configuration>")
    with pytest.raises(SetupError, match="HADOOP_CONF_DIR"):
        resource_managers({"conf": {}})
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    assert resource_managers({"conf": {}}) == ["http://one:8088", "http://two:1234"]
    secure = {"spark.hadoop.yarn.http.policy": "HTTPS_ONLY"}
    assert resource_managers({"conf": secure}) == ["https://one:8090"]
    assert resource_managers({"conf": {}, "resource_manager": "http://rm:1"}) == ["http://rm:1"]


# Kubernetes ----------------------------------------------------------------------------------------------------------

PODS = "/api/v1/namespaces/ml/pods"


def pod(phase="Running", attempt=ATTEMPT, end=None, **status):
    """A driver's pod as the Kubernetes API reference (v1.PodStatus) shows it."""
    state = {"terminated": end} if end else {"running": {"startedAt": "2026-11-24T00:00:00Z"}}
    return {
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": f"{attempt}-driver", "namespace": "ml", "labels": {"rallypoint-attempt": attempt}},
        "status": {
            "phase": phase, "containerStatuses": [{"name": "spark-kubernetes-driver", "state": state}], **status,
        },
    }  # fmt: skip


@pytest.fixture
def kubernetes(api):
    api.answers["GET", PODS] = {"kind": "PodList", "items": []}

    def manager(submit=None):
        rest = Rest([api.url], name="Kubernetes' API server", headers={"Authorization": "Bearer t0p-s3cret"})
        return Kubernetes(rest, submit or Submit(), namespace="ml")

    return manager


DONE = {"exitCode": 0, "reason": "Completed"}


def test_a_drivers_pod_has_the_attempts_name_and_labels(api, kubernetes):
    path = f"{PODS}/{ATTEMPT}-driver"
    submit = Submit(lambda: api.answers.update({("GET", path): pod("Succeeded", end=DONE)}))
    found = cluster_mode.follow(kubernetes(submit), ATTEMPT, look_every=SOON)
    assert found["application"] == f"{ATTEMPT}-driver"
    assert submit.properties == [
        {
            "spark.kubernetes.driver.pod.name": f"{ATTEMPT}-driver",
            "spark.kubernetes.driver.label.rallypoint-attempt": ATTEMPT,
            "spark.kubernetes.driver.label.rallypoint-stage": STAGE,
            "spark.kubernetes.submission.waitAppCompletion": "false",
        }
    ]
    assert {asked[4]["Authorization"] for asked in api.asked} == {"Bearer t0p-s3cret"}


def test_an_older_attempts_pod_is_deleted_first(api, kubernetes):
    old = pod("Running", attempt=OLD)
    left = [old]

    def listed(query):
        assert query["labelSelector"] == f"rallypoint-stage={STAGE},rallypoint-attempt!={ATTEMPT},spark-role=driver"
        return {"items": left}

    api.answers["GET", PODS] = listed
    api.answers["DELETE", f"{PODS}/{OLD}-driver"] = lambda _: left.clear() or old
    path = f"{PODS}/{ATTEMPT}-driver"
    submit = Submit(lambda: api.answers.update({("GET", path): pod("Succeeded", end=DONE)}))
    cluster_mode.follow(kubernetes(submit), ATTEMPT, look_every=SOON)
    (asked,) = [each for each in api.asked if each[0] == "DELETE"]
    assert asked[3]["gracePeriodSeconds"] == 20


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            pod("Failed", end={"exitCode": 137, "reason": "OOMKilled"}),
            ApplicationFailedError,
            "exit code 137 OOMKilled",
        ),
        (pod("Failed", reason="Evicted", message="low on disk"), ApplicationFailedError, "Evicted; low on disk"),
        (pod("Succeeded", end={"exitCode": 1, "reason": "Error"}), ApplicationFailedError, "exit code 1"),
        (pod("Succeeded"), ApplicationFailedError, "exit code None"),
        (pod("SomethingNew"), ApplicationLostError, "nobody can say how it ended"),
    ],
)
def test_only_a_driver_that_ended_with_0_is_a_success(api, kubernetes, answer, error, says):
    path = f"{PODS}/{ATTEMPT}-driver"
    api.answers["GET", path] = answer
    api.answers["GET", f"{path}/log"] = "Exception in thread main\n"
    with pytest.raises(error, match=says) as caught:
        cluster_mode.follow(kubernetes(), ATTEMPT, look_every=SOON)
    if answer["status"]["phase"] == "Failed":
        assert "its last lines:\nException in thread main" in str(caught.value)


def test_a_pod_that_somebody_deleted_is_lost(api, kubernetes):
    answers = iter([pod("Running"), pod("Running"), 404])
    api.answers["GET", f"{PODS}/{ATTEMPT}-driver"] = lambda _: next(answers)
    with pytest.raises(ApplicationLostError, match="no longer knows"):
        cluster_mode.follow(kubernetes(), ATTEMPT, look_every=SOON)


def test_a_node_that_does_not_answer_is_no_end_of_its_pod(api, kubernetes):
    api.answers["GET", f"{PODS}/{ATTEMPT}-driver"] = pod("Unknown")
    assert kubernetes().find(ATTEMPT).phase is Phase.RUNNING


def test_a_right_that_is_missing_is_named_without_the_token(api, kubernetes):
    api.answers["GET", PODS] = (403, {}, {"kind": "Status", "message": "pods is forbidden"})
    with pytest.raises(ManagerRefusedError, match=r"HTTP 403 .*pods is forbidden") as caught:
        cluster_mode.follow(kubernetes(), ATTEMPT, look_every=SOON)
    assert "t0p-s3cret" not in str(caught.value)


def test_a_token_goes_to_the_host_that_it_is_for_and_to_no_other(api, kubernetes):
    other = Api()
    api.answers["GET", PODS] = (307, {"Location": f"{other.url}{PODS}"}, "moved")
    with pytest.raises(ManagerRefusedError, match="HTTP 307"):
        kubernetes().older(ATTEMPT)
    other.server.shutdown()
    other.server.server_close()
    assert other.asked == []


def test_the_login_is_that_of_the_jobs_properties(api, monkeypatch, tmp_path):
    monkeypatch.setenv("K8S_TOKEN", "by-secret")
    name = "spark.kubernetes.authenticate.submission.oauthToken"
    settings = {"master": f"k8s://{api.url}", "conf": {}, "secret_conf": {name: "K8S_TOKEN"}}
    api_server(settings).get("/version")
    (tmp_path / "token").write_text("by-file\n")
    conf = {"spark.kubernetes.authenticate.submission.oauthTokenFile": str(tmp_path / "token")}
    api_server({"master": f"k8s://{api.url}", "conf": conf}).get("/version")
    assert [each[4]["Authorization"] for each in api.asked] == ["Bearer by-secret", "Bearer by-file"]
    with pytest.raises(SetupError, match="cannot be read"):
        api_server({"master": f"k8s://{api.url}", "conf": {next(iter(conf)): "/nonexistent"}})


def test_a_namespace_is_a_name():
    assert namespace_of({"conf": {"spark.kubernetes.namespace": "ml-team"}}) == "ml-team"
    with pytest.raises(SetupError, match="expected lower-case letters"):
        namespace_of({"conf": {"spark.kubernetes.namespace": "a/../b"}})


# Standalone ----------------------------------------------------------------------------------------------------------

STATUS = "/v1/submissions/status"
DRIVER = "driver-20261124000000-0001"


@pytest.fixture
def standalone(api, tmp_path):
    """A master whose drivers are set, and a manager for it; the store is that of the stage's second generation."""
    drivers = {}
    api.drivers = drivers
    api.answers["GET", "/json/"] = lambda _: {
        "status": "ALIVE",
        "activedrivers": [{"id": name, "state": "RUNNING", "mainclass": "Main"} for name in drivers],
    }
    data = f"file://{tmp_path}/generations/000002"

    def manager():
        return Standalone([api.url], [api.url], {"mainClass": "Main", "appArgs": []}, Submissions(data))

    def said(name, state, **more):
        api.answers["GET", f"{STATUS}/{name}"] = {
            "action": "SubmissionStatusResponse", "driverState": state, "serverSparkVersion": "4.2.0",
            "submissionId": name, "success": True, **more,
        }  # fmt: skip

    api.said = said
    api.data = data
    return manager


def created(api, state="FINISHED"):
    def answer(_):
        api.said(DRIVER, state)
        return {"action": "CreateSubmissionResponse", "submissionId": DRIVER, "success": True}

    api.answers["POST", "/v1/submissions/create"] = answer


def test_a_driver_is_written_down_and_found_again(api, standalone):
    created(api)
    assert cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)["application"] == DRIVER
    assert cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)["application"] == DRIVER
    assert len(api.paths("POST")) == 1
    (written,) = Submissions(api.data).read()
    assert (written.attempt, written.driver, written.known) == (ATTEMPT, DRIVER, [])


def test_an_older_attempts_driver_is_killed_whatever_its_generation(api, standalone, tmp_path):
    older = "driver-20261123000000-0007"
    before = Submissions(f"file://{tmp_path}/generations/000001")
    before.write(Submission(attempt=OLD, main_class="Main", known=[], driver=older))
    api.said(older, "RUNNING")
    kill = f"/v1/submissions/kill/{older}"
    api.answers["POST", kill] = lambda _: api.said(older, "KILLED") or {"success": True}
    created(api)
    cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)
    assert api.paths("POST") == [kill, "/v1/submissions/create"]


def test_nothing_is_submitted_while_a_driver_lives_that_may_be_an_older_attempts(api, standalone):
    Submissions(api.data).write(Submission(attempt=OLD, main_class="Main", known=["driver-before"]))
    api.drivers.update({"driver-before": 1, DRIVER: 1})
    created(api)
    with pytest.raises(OlderApplicationError, match=rf"{OLD} was being submitted.*may be it: {DRIVER}\."):
        cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)
    assert api.paths("POST") == []
    del api.drivers[DRIVER]
    assert cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)["application"] == DRIVER


@pytest.mark.parametrize("state", ["FAILED", "ERROR", "KILLED"])
def test_only_a_finished_driver_is_a_success(api, standalone, state):
    created(api, state)
    with pytest.raises(ApplicationFailedError, match=f"{DRIVER}: {state}"):
        cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)


def test_a_driver_that_the_master_has_forgotten_is_lost(api, standalone):
    created(api)
    standalone().submit(ATTEMPT)
    api.answers["GET", f"{STATUS}/{DRIVER}"] = {"action": "SubmissionStatusResponse", "success": False}
    with pytest.raises(ApplicationLostError, match="not known to the master"):
        cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)


def test_a_master_that_refuses_says_why(api, standalone):
    api.answers["POST", "/v1/submissions/create"] = {"success": False, "message": "Current state is not alive: STANDBY"}
    with pytest.raises(SubmissionError, match="STANDBY"):
        cluster_mode.follow(standalone(), ATTEMPT, look_every=SOON)


def test_what_is_submitted_has_the_secrets_in_the_environment_alone(monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2")
    job = SparkJob(
        Jar("/a.jar", "Main", ["1"]), master="spark://m:7077", deploy_mode="cluster", jars=["/b.jar"],
        secrets={"TOKEN": "hunter2"}, driver_memory="1g",
    )  # fmt: skip
    request = request_of(job.settings(), job.code.command(), ATTEMPT, "4.2.0")
    assert request["environmentVariables"]["TOKEN"] == "hunter2"
    assert "hunter2" not in json.dumps(request["sparkProperties"])
    assert (request["appResource"], request["mainClass"], request["appArgs"]) == ("/a.jar", "Main", ["1"])
    assert request["sparkProperties"]["spark.jars"] == "/a.jar,/b.jar"
    assert request["sparkProperties"]["spark.driver.memory"] == "1024m"


def test_the_addresses_are_those_of_the_cluster_or_follow_from_the_master():
    known = {"master": "spark://m:7077", "ui": "http://m:1", "rest": "http://m:2"}
    job = SparkJob(Jar("/a.jar", "Main"), master=known, deploy_mode="cluster")
    assert addresses(job.settings()) == (["http://m:2"], ["http://m:1"])
    plain = {"master": "spark://m:7077,n:7077", "conf": {"spark.master.rest.port": "99"}}
    assert addresses(plain) == (["http://m:99", "http://n:99"], ["http://m:8080", "http://n:8080"])
    with pytest.raises(SetupError, match="rest=True"):
        addresses({**plain, "cluster": {"ui": "http://m:1"}})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"entry": Script("/a.py"), "master": "spark://m:7077"}, "standalone clusters run the drivers of jars alone"),
        ({"master": "local[2]"}, "local"),
        ({"master": "spark://m:7077", "secret_conf": {"spark.my.password": "P"}, "secrets": {"P": "x"}}, "in argv"),
    ],
)
def test_what_cluster_mode_cannot_do_is_answered_when_the_job_is_made(options, says):
    with pytest.raises(InvalidJobError, match=says):
        SparkJob(**{"entry": Jar("/a.jar", "Main"), "deploy_mode": "cluster", **options})
