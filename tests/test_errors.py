"""The error tree: what crosses a Ray boundary and what an HTTP client gets."""

import pickle

import pytest

from r2_serve import errors
from r2_serve.errors import R2Error
from r2_serve.types import Usage

MADE = {
    errors.InvalidRequest: ("bad", "messages", "too_long"),
    errors.ModelNotFound: ("no model 'x'",),
    errors.Overloaded: ("full", 2.5),
    errors.SubtaskFailed: ("subtask 3 failed", 3, "small"),
    errors.CodecError: ("not a plan", "cycle"),
    errors.EngineUnavailable: ("down", 7.0),
}


def every_class(root: type[R2Error] = R2Error) -> list[type[R2Error]]:
    return [root, *(c for child in root.__subclasses__() for c in every_class(child))]


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_error_keeps_its_fields_when_it_is_pickled(cls: type[R2Error]) -> None:
    error = cls(*MADE.get(cls, ("what went wrong",)))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert copy.args == error.args
    assert copy.message == error.message
    assert vars(copy) == vars(error)
    assert (copy.status, copy.kind, copy.code) == (error.status, error.kind, error.code)


def test_usage_of_a_failed_call_is_pickled_with_its_error() -> None:
    for cls in every_class(errors.EngineError):
        error = cls("what went wrong")
        error.usage = Usage(prompt_tokens=7, completion_tokens=2)
        assert pickle.loads(pickle.dumps(error)).usage == error.usage


def test_statuses_are_those_that_openai_clients_expect() -> None:
    statuses = {cls.__name__: cls.status for cls in every_class() if cls.__module__ == errors.__name__}
    assert statuses == {
        "R2Error": 500,
        "ConfigError": 500,
        "BookError": 500,
        "PublishError": 500,
        "ServeApiError": 500,
        "InvalidRequest": 400,
        "ModelNotFound": 404,
        "ResponseNotFound": 404,
        "QueryNotFound": 404,
        "FeedbackLost": 503,
        "NotAllowed": 403,
        "BudgetExceeded": 400,
        "QuotaExceeded": 429,
        "DeadlineExceeded": 504,
        "Overloaded": 429,
        "Stopping": 503,
        "SubtaskFailed": 502,
        "CodecError": 500,
        "EngineError": 502,
        "ReplyCut": 502,
        "EngineUnavailable": 503,
        "NotStarted": 503,
        "InvalidReply": 502,
        "EngineRefused": 400,
        "ContextOverflow": 400,
        "OperatorFault": 502,
        "AnswerWithheld": 502,
        "AnswerFiltered": 400,
        "PoisonousRequest": 422,
        "EngineTimeout": 503,
        "ReplicaDied": 503,
        "EngineDied": 503,
    }


def test_invalid_request_names_its_field_and_keeps_its_class_code() -> None:
    assert errors.InvalidRequest("bad", "r2.plan").param == "r2.plan"
    assert errors.InvalidRequest("bad").code is None
    assert errors.InvalidRequest("bad", None, "context_length_exceeded").code == "context_length_exceeded"
    assert (errors.ModelNotFound("none").param, errors.ModelNotFound("none").code) == (
        "model",
        "model_not_found",
    )
