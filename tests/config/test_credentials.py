"""Passwords and tokens in URIs, however oddly they are written: found, and never shown."""

import pytest

from slingstone.config.credentials import concealed, has_credentials, redacted

CANARY = "c4n4ry"
ODD = [
    f"https://me:{CANARY}@mlflow.example.org/x",
    f"https://{CANARY}@mlflow.example.org/x",
    f"postgresql+psycopg2://me:{CANARY}/a@db/ml",
    f"postgresql://me:{CANARY}#a@db/ml",
    f"mysql+pymysql://me:{CANARY}?a@db/ml",
    f"postgresql://me:{CANARY}@{CANARY}@db/ml",
    f"postgresql://me:%2F{CANARY}%40@db/ml",
    f"postgresql://db/ml?password={CANARY}",
    f"postgresql://db/ml?sslmode=require&sslpassword={CANARY}",
    f"https://mlflow.example.org/?access_token={CANARY}",
    f"https://mlflow.example.org/#token={CANARY}",
    f"https://mlflow.example.org/?pass%77ord={CANARY}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3D{CANARY}",
    f"host=db user=me password={CANARY}",
    f"sqlite:///x.db?token={CANARY}",
    f"s3://key:{CANARY}/x@bucket/runs",
]


@pytest.mark.parametrize("uri", ODD)
def test_a_secret_in_an_odd_uri_is_found_and_not_shown(uri):
    assert has_credentials(uri)
    assert CANARY not in redacted(uri)
    error = f"OperationalError: cannot connect to {uri} (user me, password {CANARY})"
    assert CANARY not in concealed(error, {"MLFLOW_TRACKING_URI": uri})


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow:5000",
        "sqlite:////data/mlflow.db",
        "s3://bucket/a@b",
        "databricks",
        "/mnt/x@y",
        "postgresql://db/ml",
    ],
)
def test_a_uri_without_a_secret_is_shown_as_it_is(uri):
    assert not has_credentials(uri)
    assert redacted(uri) == uri


def test_tokens_of_the_environment_are_cut_out_of_a_traceback():
    given = {"HF_TOKEN": "hf_" + CANARY, "PGPASSWORD": CANARY, "AWS_SECRET_ACCESS_KEY": "key" + CANARY, "HOME": "/me"}
    assert concealed(f"a hf_{CANARY} b {CANARY} c key{CANARY} in /me", given) == "a *** b *** c *** in /me"
