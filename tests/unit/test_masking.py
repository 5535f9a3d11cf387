"""Look for secrets in masked text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.masking import mask_secrets

SECRET = "S3cret"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # URLs as they should be
        ("postgresql://u:S3cret@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://:S3cret@h/d", "postgresql://:***@h/d"),
        ("postgresql://u:S3%40cret@h/d", "postgresql://u:***@h/d"),
        ("--storage=postgresql+psycopg://u:S3cret@h/d?x=y", "--storage=postgresql+psycopg://u:***@h/d?x=y"),
        ("http_proxy=http://u:S3cret@proxy:3128/", "http_proxy=http://u:***@proxy:3128/"),
        ("s3://AKIAX:S3cret@bucket", "s3://AKIAX:***@bucket"),
        # URLs whose password nobody escaped
        ("postgresql://u:S3cret@tail@host/d", "postgresql://u:***@host/d"),
        ("postgresql://u:S3/cr:et#S3?cret@h/d?x=y", "postgresql://u:***@h/d?x=y"),
        ("postgresql://u:12/34 S3cret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://us/er:S3cret@h/d", "postgresql://us/er:***@h/d"),
        ("u:S3cret@tail@host", "u:***@host"),
        ("--storage=u:S3cret@h/d", "--storage=u:***@h/d"),
        ("postgresql:u:S3cret@h/d", "postgresql:***@h/d"),
        # Several URLs in a line
        ("see x://u:S3cret@h/d and y://v:S3cret@k", "see x://u:***@h/d and y://v:***@k"),
        ("see x://u:S3/cr@et@h/d, 'y://v:S3cret@k'", "see x://u:***@h/d, 'y://v:***@k'"),
        ("x://u:S3 cret y://S3cret@h", "x://u:***@h"),
        ("mysql://h/d: allowed: y://USER:PASSWORD@HOST", "mysql://h/d: allowed: y://USER:PASSWORD@HOST"),
        ("mysql://u@h:1/d: allowed: y://USER:PASSWORD@HOST", "mysql://u@h:1/d: allowed: y://USER:PASSWORD@HOST"),
        ("mysql://h:1 (or y://h:2, z://u:S3cret@h)", "mysql://h:1 (or y://h:2, z://u:***@h)"),
        ("sqlite:///C:/x.db, later y://u:S3cret@h", "sqlite:///C:/x.db, later y://u:***@h"),
        ("x://[::1]:5432/d: no; y://u:S3cret@[::1]:5/d", "x://[::1]:5432/d: no; y://u:***@[::1]:5/d"),
        ("x://u@[fe80::1]/d: no; y://u:S3cret@h", "x://u@[fe80::1]/d: no; y://u:***@h"),
        ("x://u:S3cret@h, --storage=y://v:S3cret@k", "x://u:***@h, --storage=y://v:***@k"),
        ("x://u: S3cret@S3cret://h@h", "x://u:***@h"),
        ("x://u:1/2 S3cret@h or y://u:S3cret@h", "x://u:***@h or y://u:***@h"),
        ("x://h/d?password=S3cret: no; y://u:S3cret@h", "x://h/d?password=*** no; y://u:***@h"),
        # Settings in a URL
        ("postgresql://h/d?user=u&password=S3cret", "postgresql://h/d?user=u&password=***"),
        ("postgresql://h/d?password=S3cret;S3cret,&user=u", "postgresql://h/d?password=***&user=u"),
        ("postgresql://h/d?sslpassword=S3cret&sslkey=file", "postgresql://h/d?sslpassword=***&sslkey=file"),
        ("s3://b?aws_secret_access_key=S3cret", "s3://b?aws_secret_access_key=***"),
        ("https://b/x?X-Amz-Signature=S3cret&y=1", "https://b/x?X-Amz-Signature=***&y=1"),
        # libpq's own form, variables, and what Python shows of records
        ("host=h password=S3cret&S3cret dbname=d", "host=h password=*** dbname=d"),
        ("host=h password='S3 cr\\'et S3cret' dbname=d", "host=h password=*** dbname=d"),
        ("password = S3cret", "password = ***"),
        ("PGPASSWORD=S3cret hpo run", "PGPASSWORD=*** hpo run"),
        ("{'password': 'S3 cret', 'x': 1}", "{'password': *** 'x': 1}"),
        # What is no secret
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgresql://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("sqlite:///C:/x.db", "sqlite:///C:/x.db"),
        ("on http://127.0.0.1:8080/ (read-only)", "on http://127.0.0.1:8080/ (read-only)"),
        ("storage sqlite:///hpo.db: no such table", "storage sqlite:///hpo.db: no such table"),
        ("host:12 ended at 12:30:05; write to me@host", "host:12 ended at 12:30:05; write to me@host"),
        ("one line USER:PASSWORD", "one line USER:PASSWORD"),
        ("run --trials 5", "run --trials 5"),
        ("x://u:***@h: no; allowed: y://USER:PASSWORD@HOST", "x://u:***@h: no; allowed: y://USER:PASSWORD@HOST"),
        ("x://u:***@h, later x://u:S3cret@h", "x://u:***@h, later x://u:***@h"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text, masked):
    assert mask_secrets(text) == masked
    assert SECRET not in masked
    assert mask_secrets(masked) == masked


FORMS = (
    "postgresql://u:{}@h/d",
    "storage postgresql://u:{}@h:1/d?sslmode=require: connection refused",
    "--storage=u:{}@h/d",
    "s3://KEY:{}@bucket/path",
    "see postgresql://a:{}@h/d and s3://b:{}@c",
    "postgresql://h/d?user=u&password={}",
    "host=h password={} dbname=d",
)
PRINTABLE = st.characters(exclude_categories=("C", "Z"))
secrets = st.text(PRINTABLE, min_size=1, max_size=20).map(lambda text: f"S3cret{text}S3cret")


@given(st.sampled_from(FORMS[:5]), secrets)
def test_no_password_before_an_at_sign_is_shown(form, secret):
    assert SECRET not in mask_secrets(form.format(secret, secret))


@given(st.sampled_from(FORMS[5:]), secrets.filter(lambda secret: "&" not in secret))
def test_no_value_of_a_secret_setting_is_shown(form, secret):
    assert SECRET not in mask_secrets(form.format(secret))


@given(st.text(st.characters(exclude_characters=":@=")))
def test_text_without_the_signs_of_a_secret_stays_as_it_is(text):
    assert mask_secrets(text) == text
