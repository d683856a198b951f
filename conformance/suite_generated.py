"""Clients that generators make of `/openapi.json`: openapi-python-client, and openapi-typescript with openapi-fetch.

The document comes from the running server. Each client sends, reads the report, and turns the pages of a list.
"""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

from harness import DEFAULT, NotHere, Suite, check, equal

SUITE = Suite("generated")
case = SUITE.case(DEFAULT, needs_http=True)
NODE_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node")
PATIENCE_SECS = 120
MESSAGES, PAGE = 5, 2


def document(target):
    return target.call("GET", "/openapi.json", expect=200)[1]


def address(target):
    return "http://%s:%d" % target.http


@contextlib.contextmanager
def document_in_a_file(target):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "openapi.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document(target), file)
        yield folder, path


@case
def the_document_is_valid(target):
    try:
        from openapi_spec_validator import validate
    except ImportError:
        raise NotHere("openapi-spec-validator is not installed") from None
    validate(document(target))


@case
def the_document_names_what_is_refused_and_shows_public_routes_only(target):
    made = document(target)
    paths = made["paths"]
    for hidden in ("/demo", "/_test/", ".do", "/sdk/"):
        check(not any(hidden in path for path in paths), f"{hidden} stands in the document")
    responses = paths["/v1/messages"]["post"]["responses"]
    check({"400", "401", "403", "409", "413", "422", "429", "503"} <= set(responses), f"responses {sorted(responses)}")
    for status, response in responses.items():
        check(status in ("202", "default") or "$ref" in response, f"{status} has no name")
    forms = made["components"]["schemas"]["Audience"]["oneOf"]
    check(all("$ref" in form for form in forms), "a form of the audience has no name")
    check(made["servers"], "there are no servers")


@case
def a_generated_python_client_sends_reads_a_report_and_turns_pages(target):
    with document_in_a_file(target) as (folder, path):
        settings = os.path.join(folder, "settings.json")
        with open(settings, "w", encoding="utf-8") as file:
            json.dump({"post_hooks": []}, file)
        package = os.path.join(folder, "generated_client")
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", path, "--meta", "none",
                   "--config", settings, "--fail-on-warning", "--output-path", package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECS)
        if "No module named" in done.stderr:
            raise NotHere("openapi-python-client is not installed")
        check(done.returncode == 0 and "WARNING" not in done.stdout, f"the generator said: {done.stdout[-2000:]}{done.stderr[-500:]}")
        sys.path.insert(0, folder)
        try:
            use_python_client(target, importlib.import_module("generated_client"))
        finally:
            sys.path.remove(folder)


def module(client, name):
    return importlib.import_module(f"{client.__name__}.{name}")


def use_python_client(target, client):
    models = module(client, "models")
    caller = client.AuthenticatedClient(base_url=address(target), token=target.app_key)

    def call(group, name, *path, **fields):
        return module(client, f"api.{group}.{name}").sync(*path, client=caller, **fields)

    device = call("devices", "register_device", body=models.NewDeviceRequest(platform=models.Platform.ANDROID, tags=["generated"]))
    audience = models.AudienceAnd(and_=[
        models.AudienceDevice(device=device.device_id), models.AudienceNot(not_=models.AudienceTag(tag="no-device-has-it")),
    ])
    request = models.MessageRequest(
        audience=audience, notification=models.Notification(title="t"), priority=models.Priority.HIGH,
        collapse_key="generated", backlog=models.BacklogLast(last=MESSAGES))
    sent = [call("messages", "send_message", body=request) for _ in range(MESSAGES)]
    for accepted in sent:
        check(isinstance(accepted, models.AcceptedMessage), f"answer {accepted}")
        equal(accepted.targeted, 1, "targeted")
    check([w.code for w in sent[0].warnings] == ["unused_tag"], f"warnings {sent[0].warnings}")

    report = call("messages", "get_message", sent[0].message_id)
    equal((report.priority, report.states.to_dict()), (models.Priority.HIGH, {"queued": 1}), "report")
    delivery = call("messages", "get_delivery", sent[0].message_id, device.device_id)
    equal(delivery.state, models.Step.QUEUED, "state")

    seen, cursor = [], client.types.UNSET
    while cursor is not None:
        page = call("messages", "list_messages", limit=PAGE, cursor=cursor)
        check(len(page.messages) <= PAGE, "a page is too long")
        seen += [message.message_id for message in page.messages]
        cursor = page.next_cursor
    wanted = [accepted.message_id for accepted in sent]
    equal([m for m in reversed(seen) if m in wanted], wanted, "messages over all pages")

    refused = call("devices", "get_device", "nobody")
    check(isinstance(refused, models.Problem) and refused.error.code == "no_such_device", f"refusal {refused}")
    estimate = call("messages", "estimate_audience", body=models.EstimateRequest(audience=models.AudienceAll.ALL))
    check(estimate.count >= 1, f"estimate {estimate}")


@case
def a_generated_typescript_client_sends_reads_a_report_and_turns_pages(target):
    tools = os.path.join(NODE_FOLDER, "node_modules")
    if not shutil.which("node") or not os.path.isdir(os.path.join(tools, "openapi-typescript")):
        raise NotHere("openapi-typescript is not installed: run `npm ci` in conformance/node")
    with document_in_a_file(target) as (folder, path):
        os.symlink(tools, os.path.join(folder, "node_modules"))
        for name in ("generated.ts", "package.json"):
            shutil.copy(os.path.join(NODE_FOLDER, name), folder)
        run(folder, "openapi-typescript/bin/cli.js", path, "-o", os.path.join(folder, "schema.d.ts"))
        run(folder, "typescript/bin/tsc", "--strict", "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext",
            "--types", "node", "generated.ts")
        told = run(folder, None, "generated.js", address(target), target.app_key)
        equal(told.strip().splitlines()[-1:], ["passed"], "the client's last word")


def run(folder, tool, *words):
    """A program of npm's, or a script of the folder."""
    program = [os.path.join(NODE_FOLDER, "node_modules", tool)] if tool else []
    done = subprocess.run(["node", *program, *words], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECS)
    check(done.returncode == 0, f"{tool or words[0]}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout
