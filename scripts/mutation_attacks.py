"""Protections against hostile hosts, records and users, and the tests that must fail without each of them.

Invariant: every test file that a protection names fails without it.
"""

from __future__ import annotations

from scripts.protection import Protection

ATTACKED = (
    # A closed boundary instead of a list of exceptions
    Protection(
        "Whatever one record of a collect raises, the others are looked at",
        "core/reconcile/collect.py",
        "        failure = await closed(work)\n        if failure is not None:\n",
        "        failure = None\n        await work\n        if failure is not None:\n",
        tests={"integration/attacks/test_boundary.py": "where_airflow_breaks_for_one"},
    ),
    Protection(
        "Whatever a fetch raises is an outcome",
        "core/http/download.py",
        "    found = await closed(_followed(url, max_bytes, timeout, exempt, hold, where), where.broken)\n",
        "    found = await _followed(url, max_bytes, timeout, exempt, hold, where)\n",
        tests={"integration/attacks/test_boundary.py": "input_whose_host_breaks"},
    ),
    Protection(
        "Whatever landing raises is noted on the record",
        "core/purchase/landing.py",
        "            landed = await closed(self._land(record, images, reported_cost, allocation), _broken)\n",
        "            landed = await self._land(record, images, reported_cost, allocation)\n",
        tests={"integration/attacks/test_boundary.py": "nobody_foresaw_is_noted_after_the_payment"},
    ),
    Protection(
        "A host that breaks a parser is no host",
        "core/validation/hosts.py",
        "    except Exception:  # whatever the parsers raise\n        return False\n",
        "    except ZeroDivisionError:\n        return False\n",
        tests={"integration/attacks/test_boundary.py": "connections_host_that_no_host"},
    ),
    Protection(
        "Half a character is one clear error",
        "core/validation/texts.py",
        "        text.encode()\n    except UnicodeEncodeError:",
        "        text.encode(errors='replace')\n    except UnicodeEncodeError:",
        tests={"integration/attacks/test_texts.py": "task_returned_and_breaks or returns_and_breaks"},
    ),
    # Announced lengths are not sizes
    Protection(
        "What arrives of a result is charged to the memory that all share",
        "core/http/download_buffer.py",
        "        if self._hold is not None:\n",
        "        if False:\n",
        tests={"integration/attacks/test_memory.py": "large_images_behind_a_small_one"},
    ),
    Protection(
        "What arrives of an answer is charged to the memory that all share",
        "core/http/response_body.py",
        "            if self._hold is not None:\n",
        "            if False:\n",
        tests={"integration/attacks/test_memory.py": "large_answers_to_submits"},
    ),
    # Bounded bytes, unbounded work on the event loop
    Protection(
        "An answer has a limit of values",
        "core/http/json_limits.py",
        "MAX_ITEMS = 50_000 ",
        "MAX_ITEMS = 50_000_000 ",
        tests={"integration/attacks/test_loop.py": "answer_to_a_submit_does_not_stop"},
    ),
    Protection(
        "The triggerer reads small answers only",
        "core/http/exchange.py",
        "        self._most = most if call.billable or max_poll is None else min(most, max_poll)\n",
        "        self._most = most\n",
        tests={"integration/attacks/test_loop.py": "too_large_for_the_triggerer"},
    ),
    # An approval is bound to content
    Protection(
        "What goes on is what was shown, whatever the XCom says by then",
        "core/purchase/approval.py",
        "            edited = _canonical(xcom) != _canonical(shown)\n",
        "            edited = False\n",
        tests={"integration/attacks/test_approval.py": "xcom_that_is_edited_while"},
    ),
    Protection(
        "What was shown is kept by its hash",
        "core/purchase/approval.py",
        "        if hashlib.sha256(blob.data).hexdigest() != self._digest(keys[0]):\n",
        "        if False:\n",
        tests={"integration/attacks/test_approval.py": "kept_and_is_edited"},
    ),
    # Two parsers of one address
    Protection(
        "What another parser reads in another way is refused",
        "core/storage/uris.py",
        "        if held in but_for:\n",
        "        if True:\n",
        tests={"integration/attacks/test_addresses.py": "fsspec_reads_in_another_way"},
    ),
    Protection(
        "An output path or a root holds no chain",
        "core/storage/uris.py",
        "    if CHAIN in uri:\n",
        "    if False:\n",
        tests={"integration/attacks/test_addresses.py": "addresses_would_be_chains"},
    ),
    Protection(
        "An image at an address that is refused now is found",
        "core/storage/files.py",
        '            place = self._place(uri, "uri", landed=True)\n            return "there"',
        '            place = self._place(uri, "uri")\n            return "there"',
        tests={"integration/attacks/test_addresses.py": "refused_now_is_returned"},
    ),
    # Pillow
    Protection(
        "A decoder is given pixels alone",
        "core/purchase/thumbnails.py",
        "io.BytesIO(pixels_of(data, info.extension, width * height))",
        "io.BytesIO(data)",
        tests={"integration/attacks/test_thumbnails.py": "beside_its_pixels or too_much_work"},
    ),
    Protection(
        "An image of too many pixels is not decoded",
        "core/purchase/thumbnails.py",
        "    if width * height > MAX_PIXELS[info.extension]:\n",
        "    if False:\n",
        tests={"unit/core/purchase/test_thumbnails.py": "can_not_be_trusted and megapixels"},
    ),
    # The sandbox
    Protection(
        "A page of another origin is refused",
        "sandbox/app.py",
        "        if any(not _is_own(origin, host) for origin in origins) or any(",
        "        if any(",
        tests={"integration/attacks/test_sandbox.py": "another_origin or two_origins"},
    ),
    Protection(
        "What changes the sandbox is JSON",
        "sandbox/app.py",
        'route is None and method not in ("GET", "HEAD") and not is_json',
        "False",
        tests={"integration/attacks/test_sandbox.py": "json_which_no_form"},
    ),
    Protection(
        "No answer of the sandbox is guessed to be a page",
        "sandbox/server.py",
        '    ("X-Content-Type-Options", "nosniff"),\n',
        "",
        tests={"integration/attacks/test_sandbox.py": "runs_as_a_page"},
    ),
    Protection(
        "No answer of the sandbox runs as a page",
        "sandbox/server.py",
        "    (\"Content-Security-Policy\", \"default-src 'none'; frame-ancestors 'none'; sandbox\"),\n",
        "",
        tests={"integration/attacks/test_sandbox.py": "runs_as_a_page"},
    ),
    # Numbers from outside have ranges
    Protection(
        "A cost has a range",
        "core/redaction/ranges.py",
        "REPORTED_COST = Range(0.0, 1_000.0)",
        "REPORTED_COST = Range(-math.inf, math.inf)",
        tests={"integration/attacks/test_numbers.py": "cost_that_is_none"},
    ),
    Protection(
        "A wait has a range",
        "core/redaction/ranges.py",
        "LONGEST_WAIT = 86_400.0",
        "LONGEST_WAIT = math.inf",
        tests={"integration/attacks/test_numbers.py": "wait"},
    ),
    Protection(
        "A cost in a record has a range",
        "core/ledger/record.py",
        "    return _with_sane_costs(record)\n",
        "    return record\n",
        tests={"integration/attacks/test_numbers.py": "earlier_version_believed"},
    ),
    # Rows
    Protection(
        "A batch asks for no more images than are allowed",
        "core/batch/image_specs.py",
        "    if total > most:\n        raise too_many(f",
        "    if False:\n        raise too_many(f",
        tests={"integration/attacks/test_texts.py": "million_images or own_n_counts or raises_and_lowers"},
    ),
    Protection(
        "Rows of a file are read no further than are allowed",
        "core/batch/row_files.py",
        "    rows = itertools.islice(begin(), source.most)\n",
        "    rows = begin()\n",
        tests={"integration/attacks/test_texts.py": "not_read_on"},
    ),
    # The gallery, and whoever looks at records
    Protection(
        "A page reads a part of the records",
        "gallery/queries.py",
        "self._read(itertools.islice(keys, MAX_READ))",
        "self._read(keys)",
        tests={"unit/gallery/test_app.py": "filter_without_hits"},
    ),
    Protection(
        "A question that makes no sense is refused in a sentence",
        "gallery/app.py",
        "        if given and not pattern.fullmatch(given[0]):\n",
        "        if False:\n",
        tests={"unit/gallery/test_app.py": "no_question_that_makes_no_sense"},
    ),
    Protection(
        "A record that can't be shown is unreadable, everywhere",
        "core/ledger/record_values.py",
        "    return isinstance(value, types) and (bool in types or not isinstance(value, bool))\n",
        "    return True\n",
        tests={"unit/gallery/test_app.py": "can_not_be_shown", "unit/runtime/test_jobs_command.py": "odd_record"},
    ),
    # The terminal
    Protection(
        "What is printed moves no cursor",
        "runtime/command_line.py",
        "    print(printable(text), file=file, flush=True)\n",
        "    print(text, file=file, flush=True)\n",
        tests={"unit/runtime/test_jobs_command.py": "moves_a_cursor"},
    ),
    Protection(
        "What is wrong is repeated harmlessly",
        "__main__.py",
        "        super().error(printable(message))\n",
        "        super().error(message)\n",
        tests={"unit/runtime/test_jobs_command.py": "repeated_harmlessly"},
    ),
    # What lies under the root is its owner's alone
    Protection(
        "What the ledger writes is its owner's alone",
        "core/storage/folders.py",
        "PRIVATE = Modes(0o700, 0o600, exact=True)\n",
        "PRIVATE = Modes(0o777, 0o666, exact=False)\n",
        tests={"integration/test_private_root.py": "whatever_the_umask"},
    ),
    Protection(
        "Folders that were left open are closed",
        "core/storage/local.py",
        '            close_folders(f"{self._root}/{IMAGES}", folder)\n',
        "            pass\n",
        tests={"integration/test_private_root.py": "left_open"},
    ),
    # Decided
    Protection(
        "No page of another site shows an image",
        "gallery/app.py",
        '    "Cross-Origin-Resource-Policy": "same-origin",\n',
        "",
        tests={"unit/gallery/test_app.py": "no_other_site"},
    ),
    Protection(
        "A browser's store tells users apart",
        "gallery/app.py",
        ', "Vary": "Cookie, Authorization"',
        "",
        tests={"unit/gallery/test_app.py": "no_other_site"},
    ),
    Protection(
        "A file name is one on Windows",
        "core/validation/arguments.py",
        '        else "a device on Windows" if _WINDOWS_DEVICE.match(plain)\n',
        "",
        tests={"integration/attacks/test_addresses.py": "file_name_that_is_another_file or device"},
    ),
)
