"""The tree of outcomes: each says what became of the money, survives being written down, and gives nothing away."""

from __future__ import annotations

import base64
import html
import json
import pickle
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_geminiimg import exceptions
from airflow_provider_geminiimg.exceptions import (
    KINDS,
    BadRequestError,
    Billed,
    ContentRefusedError,
    Fault,
    GeminiImageError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitedError,
    UpstreamFailedError,
    from_dict,
    scrub,
)

KEY = "canary-key-0123456789"
PROMPT = 'A red fox, "Vulpes vulpes", jumps over the frozen lake\nwhile the moon rises behind the mill'
LINK = "https://storage.example.com/asset/fox.png?X-Amz-Date=20260101T000000Z&X-Amz-Signature=cafe0123"

ALL = {
    "billed": Billed.UNKNOWN,
    "retryable": True,
    "hint": "Do something.",
    "code": "E42",
    "gateway_message": "busy",
    "details": "the truth",
    "request_id": "req-1",
    "status_code": 503,
    "retry_after": 1.5,
}


def subclasses(cls: type[GeminiImageError]) -> set[type[GeminiImageError]]:
    found = {sub for sub in cls.__subclasses__() if sub.__module__ == exceptions.__name__}
    return found.union(*(subclasses(sub) for sub in found))


# The tree


def test_every_outcome_has_a_kind_of_its_own_and_is_known_by_it() -> None:
    assert set(KINDS.values()) == subclasses(GeminiImageError)
    assert len(KINDS) == len(set(KINDS.values()))


def test_the_docstring_draws_the_whole_tree() -> None:
    for cls in KINDS.values():
        assert f"── {cls.__name__} " in str(exceptions.__doc__)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_from_the_ledger_as_it_was(kind: str) -> None:
    for values in ({}, ALL):
        error = KINDS[kind]("It happened.", **values)  # type: ignore[arg-type]
        again = from_dict(json.loads(json.dumps(error.to_dict())))
        assert type(again) is KINDS[kind]
        assert vars(again) == vars(error)
        assert str(again) == str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_a_pickle(kind: str) -> None:
    error = KINDS[kind]("It happened.", **ALL)  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is KINDS[kind]
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_became_of_the_money_and_whose_turn_it_is(kind: str) -> None:
    sentences = {
        Billed.NO: "No money was spent.",
        Billed.YES: "The images that landed were paid for" if KINDS[kind].of_many else "The image was paid for.",
        Billed.UNKNOWN: "Money may have been spent.",
    }
    assert isinstance(KINDS[kind].fault, Fault)
    assert sentences[KINDS[kind].default_billed] in str(KINDS[kind]("It happened."))
    for billed, sentence in sentences.items():
        said = str(KINDS[kind]("It happened.", billed=billed))
        assert said.startswith("It happened.")
        assert [other for other in sentences.values() if other in said] == [sentence]


@pytest.mark.parametrize("kind", ["outcome_unknown", "link_expired", "no_picture", "mismatch"])
def test_what_costs_money_to_repeat_names_the_argument_that_allows_it(kind: str) -> None:
    assert any(way in str(KINDS[kind]("?")) for way in ('on_unknown="resubmit"', 'on_clear="regenerate"'))


@pytest.mark.parametrize(
    "kind", ["bad_request", "authentication", "insufficient_balance", "over_budget", "outcome_unknown"]
)
def test_what_a_retry_can_not_help_says_so(kind: str) -> None:
    assert KINDS[kind]("?").retryable is False


@pytest.mark.parametrize("kind", ["rate_limited", "not_sent"])
def test_what_may_be_sent_again_is_unpaid(kind: str) -> None:
    error = KINDS[kind]("?")
    assert error.retryable is True
    assert error.billed is Billed.NO


def test_an_error_says_what_the_gateway_said_and_what_to_do_next() -> None:
    error = UpstreamFailedError("1min.ai failed.", **ALL)  # type: ignore[arg-type]
    assert str(error) == (
        "1min.ai failed. (the gateway said: HTTP 503; code E42; message: busy; details: the truth; request id req-1) "
        "Money may have been spent. Do something."
    )


def test_a_kind_of_a_newer_version_is_outcome_unknown() -> None:
    error = from_dict({"kind": "abducted", "message": "Gone."})
    assert type(error) is OutcomeUnknownError
    assert error.billed is Billed.UNKNOWN


def test_unset_values_are_not_written_down() -> None:
    assert set(NotSentError("?").to_dict()) == {"kind", "message", "billed", "retryable", "hint"}


# Scrubbing: links, keys, images


@pytest.mark.parametrize("text", [
    f"see {LINK} now",
    f'{{"url": "{LINK}"}}',
    json.dumps({"url": LINK}).replace("/", "\\/"),
    json.dumps({"url": LINK}).replace("&", "\\u0026"),
    json.dumps(json.dumps({"url": LINK}).replace("&", "\\u0026").replace("/", "\\/")),
    html.escape(f'<a href="{LINK}">'),
    f"<{LINK}>",
    f"{LINK}\n{LINK}",
    LINK.upper().replace("CAFE0123", "cafe0123"),
    LINK.replace("?", "#"),
    f"s3{LINK[5:]}",
], ids=lambda text: text[:30])  # fmt: skip
def test_the_query_of_a_link_is_taken_out_however_it_is_written(text: str) -> None:
    found = scrub(text)
    assert "cafe0123" not in found
    assert "signature" not in found.lower()
    assert "storage.example.com" in found.lower()


def test_a_link_without_a_query_stays() -> None:
    assert scrub("see https://apimaster.ai/imgs/1.jpg now") == "see https://apimaster.ai/imgs/1.jpg now"


def test_text_after_a_link_stays() -> None:
    assert scrub(f'{{"url": "{LINK}", "code": 7}}').endswith('", "code": 7}')


@pytest.mark.parametrize("address", [
    "https://user:secretpw@example.com/p",
    "http://secretpw@example.com",
    "https://u:secretpw@x@example.com",
    "https:\\/\\/u:secretpw@example.com",
])  # fmt: skip
def test_user_and_password_of_an_address_are_taken_out(address: str) -> None:
    assert "secretpw" not in scrub(f"from {address} it came")
    assert "example.com" in scrub(f"from {address} it came")


@pytest.mark.parametrize("text", [KEY, f"Bearer {KEY}", f"{KEY}{KEY}", f"key={KEY};", f"/{KEY}/"])
def test_the_key_is_taken_out_wherever_it_stands(text: str) -> None:
    assert KEY not in scrub(text, secrets=[KEY])


ODD_KEY = 'canary/key+with=odd&"characters"'


@pytest.mark.parametrize("spelled", [
    quote(ODD_KEY),
    quote(ODD_KEY, safe=""),
    quote(ODD_KEY, safe="").lower(),
    json.dumps(ODD_KEY),
    json.dumps(json.dumps(ODD_KEY)),
    ODD_KEY.replace("/", "\\/"),
    html.escape(ODD_KEY),
    ODD_KEY.upper(),
])  # fmt: skip
def test_a_key_with_odd_characters_is_taken_out_however_it_is_written(spelled: str) -> None:
    assert "odd" not in scrub(f"your key {spelled} is wrong", secrets=[ODD_KEY]).lower()


@pytest.mark.parametrize("spelled", [
    quote(quote(ODD_KEY, safe=""), safe=""),
    quote(quote(quote(ODD_KEY))),
    "".join(f"\\u{ord(char):04x}" for char in ODD_KEY),
    ODD_KEY.replace("+", "\\u002B").replace("/", "\\/").replace("=", "\\u003d"),
    json.dumps(ODD_KEY.replace("+", "\\u002b").replace("&", "\\u0026")),
    ODD_KEY.replace("&", "&#x26;").replace("/", "&#x2F;").replace("+", "&#43;").replace('"', "&#034;"),
    html.escape(html.escape(ODD_KEY)),
    quote(html.escape(ODD_KEY)),
    f"{ODD_KEY[:17]}\n{ODD_KEY[17:]}",
    f"{ODD_KEY[:17]}\r\n  {ODD_KEY[17:]}",
    f"{ODD_KEY[:17]}\\n{ODD_KEY[17:]}",
    *(base64.b64encode(f"{lead}{ODD_KEY}{tail}".encode()).decode() for lead in ("", "a", "ab") for tail in ("", "x")),
    base64.urlsafe_b64encode(ODD_KEY.encode()).decode(),
])  # fmt: skip
def test_a_key_is_taken_out_escaped_more_than_once_broken_into_lines_or_in_base64(spelled: str) -> None:
    found = scrub(f"your key {spelled} is wrong", secrets=[ODD_KEY])
    assert found.startswith("your key ")
    assert found.endswith(" is wrong")
    assert "[secret]" in found
    assert len(found) < len("your key [secret] is wrong") + 12


@pytest.mark.parametrize("text", [
    "link=https%3A%2F%2Fb.s3.example%2Fx.png%3FX-Amz-Signature%3DS1G",
    "https%253A%252F%252Fb%252Fx%253Fsig%253DS1G",
    "https%3A%2F%2Fb%2Fa fox.png%3Fa%3D1%26X-Goog-Signature%3DS1G",
    "https:\\u002f\\u002fb.s3/x.png\\u003fX-Amz-Signature\\u003dS1G",
    "https:\\\\u002F\\\\u002Fb.s3/x.png\\\\u003Fq\\\\u003DS1G",
    "https:\\x2f\\x2fb/x\\x3fq\\x3dS1G",
    "https:&#x2F;&#x2F;b.s3&#x2F;x.png?sig&#x3D;S1G",
    "https&colon;&sol;&sol;b&sol;x&quest;q&equals;S1G",
    "https%3A%2F%2Fb%2Fx%26%2363%3Bq%3DS1G",
    "https://b.s3/x.png\uff1fsig=S1G",
    "https://b.s3/x.png;sig=S1G",
    "b/x.png?a b&X-Amz-Signature=S1G",
    "/x.png?response[content]=1&X-Amz-Signature=S1G",
    "X-Amz-Signature=S1G",
    "X-Amz-Signature: S1G",
    "X-Amz-Credential=S1G/20260101&X-Amz-Security-Token=S1G",
    "AWS4-HMAC-SHA256 Credential=S1G/x, SignedHeaders=host, Signature=S1G",
    "{'X-Amz-Signature': 'S1G'}",
    '{"params": {"sig" : "a S1G"}}',
    json.dumps(json.dumps({"X-Goog-Credential": "S1G"})),
    "OSSAccessKeyId=S1G",
    "api_key=S1G",
    "token=abcdefghijklmnop0S1G",
    "//user:S1G@b/x",
])  # fmt: skip
def test_what_signs_a_link_is_taken_out_however_it_is_escaped_and_without_the_link(text: str) -> None:
    for around in ("{}", "Not found: {} (HTTP 404)", '{{"message": "{}"}}', "<p>{}</p>"):
        assert "S1G" not in scrub(around.format(text))


@pytest.mark.parametrize("text", [
    "SignatureDoesNotMatch: The request signature we calculated does not match the signature you provided.",
    "Function call is missing a thought_signature: see the documentation.",
    "Invalid token: expected a comma. The API key is not valid (code 401); credentials: none",
    "token=5, key='fox', tokens: 1290, max_output_tokens=32768",
    "ledger/my%20dag/manual__2026-01-01T00%3A00%3A00%2B00%3A00/made/-1/1.json",
    "file:///data/dag=a/run%3D1/K%C3%B6ln.png, 100%25 of it & more; R&amp;D",
    "Größe “4K” wird nicht angeboten — 狐狸",
])  # fmt: skip
def test_what_only_talks_about_keys_and_signatures_stays(text: str) -> None:
    assert scrub(text, secrets=[KEY]) == text


@pytest.mark.parametrize("unit", [
    "sig=", "token:", "signature = ", "\\", "%25", "&amp;", "//a:", "https%3A%2F%2Fb%2Fx ", "c", KEY[:-1], "\r\n",
    "\\n", "c\n", "\\u002f", "\uff1f",
])  # fmt: skip
def test_no_long_text_takes_long(unit: str) -> None:
    started = time.thread_time()
    scrub((unit * 65_536)[:65_536], secrets=[KEY])
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("sign", ["\n", "\r\n", "\x1b[2J", "\0", "\x85", "\u2028", "\u202e"])
def test_what_could_be_taken_for_another_line_or_moves_a_cursor_becomes_a_blank(sign: str) -> None:
    said = scrub(f"refused{sign}2026-01-01 INFO all is well")
    assert said.isprintable()
    assert said.startswith("refused ")


def test_an_empty_secret_changes_nothing() -> None:
    assert scrub("hello", secrets=["", ""]) == "hello"


@pytest.mark.parametrize("uri", [
    "data:image/png;base64,iVBORw0KGgoCANARY+/=",
    "data:image/png;charset=utf-8;base64,iVBORw0KGgoCANARY",
    "DATA:IMAGE/PNG;BASE64,iVBORw0KGgoCANARY",
    "data:image\\/png;base64,iVBO\\/Rw0KGgoCANARY",
    "data:;base64,iVBORw0KGgoCANARY",
    "data:image/png;base64,iVBORw0K%2BGgoCANARY",
])  # fmt: skip
def test_image_bytes_in_a_data_uri_are_taken_out(uri: str) -> None:
    assert scrub(f'in "{uri}" there') == 'in "[image]" there'


def test_image_bytes_without_a_data_uri_are_taken_out() -> None:
    assert scrub(f'{{"b64_json": "{"iVBORw0KGgo/" * 40}=="}}') == '{"b64_json": "[bytes]"}'


# Scrubbing: the prompt


@pytest.mark.parametrize("text", [
    PROMPT,
    PROMPT.upper(),
    PROMPT.lower(),
    json.dumps({"prompt": PROMPT}),
    json.dumps({"message": json.dumps({"prompt": PROMPT})}),
    json.dumps({"m": json.dumps({"m": json.dumps({"prompt": PROMPT})})}),
    html.escape(PROMPT),
    PROMPT.replace("\n", " "),
    " ".join(PROMPT.split()),
    PROMPT.replace(" ", "  "),
    f"blocked: {PROMPT[:40]}…",
    f"blocked: …{PROMPT[-40:]}",
    f"blocked: {PROMPT[10:50]} and again {PROMPT[10:50]}",
    f"{PROMPT[50:]} before {PROMPT[:40]}",
    f"blocked: {PROMPT[5:45].upper()}",
    f"blocked: {PROMPT} ({PROMPT[:30].lower()})",
], ids=range(16))  # fmt: skip
def test_an_echo_of_the_prompt_is_taken_out_whole_or_in_part_in_any_case_and_escaping(text: str) -> None:
    found = scrub(text, prompt=PROMPT)
    assert "[prompt]" in found
    for word in ("fox", "jumps", "frozen", "lake", "moon", "mill", "rises"):
        assert word not in found.lower(), found


@pytest.mark.parametrize("prompt", ["狐狸在雪地里跳跃月亮升起来了远处有一座磨坊", "Ärger über Öl: zwölf Boxkämpfer"])
def test_an_echo_in_another_script_is_taken_out_escaped_or_not(prompt: str) -> None:
    once = json.dumps({"prompt": prompt})
    twice = json.dumps({"message": once})
    for text in (prompt, once, twice, json.dumps({"message": twice}), once[:-6], prompt[:18]):
        found = scrub(text, prompt=prompt)
        assert "[prompt]" in found
        assert not any(prompt[at : at + 4] in found for at in range(len(prompt) - 4))
        escaped = json.dumps(prompt)[1:-1]
        assert escaped[:20] not in found


def test_a_short_prompt_is_taken_out_whole() -> None:
    assert scrub('You asked for "A Fox".', prompt="a fox") == 'You asked for "[prompt]".'


def test_what_the_prompt_does_not_share_stays() -> None:
    text = "The request was blocked: PROHIBITED_CONTENT (request id 20260101abcdef)"
    assert scrub(text, prompt=PROMPT) == text


def test_an_empty_prompt_changes_nothing() -> None:
    assert scrub("hello there", prompt="") == "hello there"
    assert scrub("hello there", prompt="  \n") == "hello there"


def test_what_is_left_is_cut() -> None:
    assert scrub("x y " * 500, limit=100) == ("x y " * 500)[:99] + "…"


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_no_text_breaks_it_and_no_prompt_of_letters_is_left(prompt: str, before: str, after: str) -> None:
    found = scrub(f"{before}{prompt}{after}", prompt=prompt)
    if len(prompt) > 20 and prompt.isalnum():
        assert prompt not in found


def test_the_longest_prompt_does_not_stop_an_event_loop() -> None:
    prompt = "".join(f"word{number} " for number in range(4000))
    started = time.thread_time()
    assert "word77" not in scrub(f"blocked: {prompt[:2000]}", prompt=prompt)
    assert time.thread_time() - started < 0.5


# An outcome on its way out


def outcome() -> ContentRefusedError:
    return ContentRefusedError(
        f"Refused at {LINK}.",
        code=f"E-{KEY}",
        gateway_message=f"Your prompt: {PROMPT}",
        details=json.dumps({"prompt": PROMPT, "url": LINK, "image": "data:image/png;base64,iVBORw0KGgo"}),
        request_id=KEY,
        status_code=400,
    )


def test_an_outcome_goes_out_without_key_link_image_and_prompt() -> None:
    error = outcome().scrubbed(secrets=[KEY], prompt=PROMPT)
    assert type(error) is ContentRefusedError
    written = json.dumps(error.to_dict()) + str(error) + repr(error)
    for secret in (KEY, "cafe0123", "iVBOR", "Vulpes", "frozen"):
        assert secret not in written
    assert error.status_code == 400
    assert error.gateway_message == "Your prompt: [prompt]"


def test_where_the_prompt_is_not_known_the_gateways_free_text_is_withheld() -> None:
    error = outcome().scrubbed(secrets=[KEY])
    assert error.gateway_message == error.details == "[withheld: it may repeat the prompt]"
    assert "Vulpes" not in json.dumps(error.to_dict())


def test_where_there_is_no_prompt_the_gateways_text_stays() -> None:
    error = RateLimitedError("Slow down.", gateway_message="Too many requests").scrubbed(prompt="")
    assert error.gateway_message == "Too many requests"


def test_scrubbing_keeps_what_the_outcome_means() -> None:
    error = UpstreamFailedError("It happened.", **ALL)  # type: ignore[arg-type]
    assert vars(error.scrubbed(prompt="another prompt")) == vars(error)


def test_an_outcome_evolves_into_another_one_and_stays_as_it_is() -> None:
    cause = OSError("broken")
    error = NotSentError("It happened.", **ALL)  # type: ignore[arg-type]
    error.__cause__ = cause
    before = dict(vars(error))
    evolved = error.evolve(message="It happened again.", billed=Billed.NO, of_many=True)
    assert vars(error) == before
    assert (type(evolved), evolved.__cause__) == (NotSentError, cause)
    assert vars(evolved) == {**before, "message": "It happened again.", "billed": Billed.NO, "of_many": True}
    assert (evolved.args, evolved.evolve(hint="").of_many) == (("It happened again.",), True)


def test_an_outcome_evolves_by_the_values_that_it_has() -> None:
    with pytest.raises(TypeError, match="has no colour"):
        BadRequestError("It happened.").evolve(colour="red")


def test_an_outcome_that_is_already_clean_does_not_change() -> None:
    error = BadRequestError("resolution='8K': not taken. Allowed: 1K, 2K, 4K.")
    assert str(error.scrubbed(secrets=[KEY], prompt=PROMPT)) == str(error)
