"""The protections behind other promises of SECURITY.md, and which tests must turn red without each of them.

What must stay true: every test file that a protection names notices that it is gone.
"""

from __future__ import annotations

from scripts.protection import Protection

PROMISED = (
    # Links and addresses
    Protection(
        "No link leads to an address that is not public",
        "core/http/download.py",
        "    if not target.exempt and not all(is_public(address) for address in addresses):\n",
        "    if False:\n",
        tests={
            "integration/attacks/test_links.py": "input_address_that_leads_inwards or redirected_inwards_is_refused"
        },
    ),
    Protection(
        "The address that was looked at is the one that is connected to",
        "core/http/download.py",
        "target.url.copy_with(host=address)",
        "target.url",
        tests={"integration/attacks/test_links.py": "loopback_second_is_looked_up_once"},
    ),
    Protection(
        "A redirect of the API is not followed",
        "core/http/exchange.py",
        "stream=True, follow_redirects=False)",
        "stream=True, follow_redirects=True)",
        tests={"integration/attacks/test_links.py": "submit_that_is_redirected"},
    ),
    Protection(
        "A host of thousands of labels is no host",
        "core/validation/hosts.py",
        "        if len(name) > _LONGEST_NAME:",
        "        if False:",
        tests={"integration/attacks/test_loop.py": "thousands_of_labels"},
    ),
    Protection(
        "Name servers that do not answer hold up look-ups alone",
        "core/http/public_addresses.py",
        "        _resolvers(), lambda:",
        "        None, lambda:",
        tests={"integration/attacks/test_loop.py": "name_servers"},
    ),
    # What the author of a DAG allows
    Protection(
        "The budget of a DAG run limits all its tasks",
        "core/ledger/budget.py",
        "[] if connection.run_budget is None else [run_cap(connection, item)]",
        "[]",
        tests={"integration/money/test_budget.py": "all_tasks_of_a_run or of_a_run_hold_at_once"},
    ),
    Protection(
        "The limits of a connection hold over all processes",
        "runtime/environment.py",
        "Transport(connection, account=shared)",
        "Transport(connection)",
        tests={"integration/money/test_limits.py": "reserves_from_the_root"},
    ),
    Protection(
        "No slot of a rate limit is given to two processes",
        "core/ledger/account_limits.py",
        '"next": first + count * interval, "by": by}',
        '"next": first + count * interval}',
        tests={"unit/core/ledger/test_account_limits.py": "none_gets_the_slot_of_another"},
    ),
    Protection(
        "An empty image becomes a generation only by consent",
        "runtime/image_task.py",
        ' and arguments.checked("if_no_image") == "generate"',
        "",
        tests={"integration/operators/test_optional_image.py": "without_consent"},
    ),
    Protection(
        "A name that does not exist is no empty image",
        "core/validation/task_arguments.py",
        "isinstance(self.absent[name], IncompleteText | UndefinedText)",
        "False",
        tests={"integration/operators/test_optional_image.py": "name_that_does_not_exist"},
    ),
    # Fences: what is read in another way somewhere, and allowed_roots
    Protection(
        "No web address climbs, however often a server decodes it",
        "core/storage/uris.py",
        '    climbs = _climbs(path.partition("?")[0]) if scheme in WEB_SCHEMES else ".." in path.split("/") or ',
        '    climbs = ".." in path.split("/") or ',
        tests={"integration/attacks/test_fences.py": "no_other_connection and server"},
    ),
    Protection(
        "No path climbs",
        "core/storage/uris.py",
        'else ".." in path.split("/") or "\\0" in path\n',
        "else False\n",
        tests={
            "integration/attacks/test_fences.py": "no_other_connection and upwards",
            "integration/attacks/test_paths.py": "output_path_that_leads_elsewhere",
        },
    ),
    Protection(
        "Where a symbolic link leads counts",
        "core/storage/uris.py",
        "for part in os.path.realpath(self.path).split",
        "for part in self.path.split",
        tests={"integration/attacks/test_fences.py": "symbolic_link"},
    ),
    Protection(
        "Another connection's bucket is another place",
        "core/storage/uris.py",
        'return (self.scheme, self.conn_id or "", self.bucket,',
        'return (self.scheme, "", self.bucket,',
        tests={"integration/attacks/test_fences.py": "no_other_connection"},
    ),
    # Names that become paths
    Protection(
        "A job's id is one segment of an address",
        "core/gateways/responses.py",
        '    return quote(job_id, safe="")\n',
        "    return job_id\n",
        tests={"integration/attacks/test_paths.py": "leads_to_no_other_address"},
    ),
    Protection(
        "What can't be a job's id is none",
        "core/gateways/responses.py",
        '    return len(text) <= 512 and text.isprintable() and text not in (".", "..")\n',
        "    return True\n",
        tests={"integration/attacks/test_paths.py": "can_not_be_a_job_id"},
    ),
    Protection(
        "Airflow's ids are encoded",
        "core/storage/uris.py",
        "    encoded = _ENCODED.sub(lambda found: _percent(found.group()), segment)\n",
        "    encoded = segment\n",
        tests={
            "integration/attacks/test_paths.py": "ids_of_airflow or run_ids_with_slashes or namespace_and_a_variant"
        },
    ),
    Protection(
        "What an error repeats is one line, and moves no cursor",
        "core/redaction/scrubbing.py",
        '    text = printable(text, " ")\n',
        "",
        tests={"unit/test_exceptions.py": "taken_for_another_line"},
    ),
    # Bodies and headers
    Protection(
        "No more of an answer is unpacked than it may have",
        "core/http/response_body.py",
        "            if self._size > self._limit:\n                raise self._too_large()\n",
        "",
        tests={"integration/attacks/test_bodies.py": "up_to_its_limits and size"},
    ),
    Protection(
        "An answer has a limit of depth",
        "core/http/json_limits.py",
        "MAX_DEPTH = 64 ",
        "MAX_DEPTH = 64_000_000 ",
        tests={"integration/attacks/test_bodies.py": "up_to_its_limits and depth"},
    ),
    Protection(
        "An answer brings a few images",
        "core/gateways/results.py",
        "MAX_IMAGES = 16 ",
        "MAX_IMAGES = 16_000 ",
        tests={"integration/attacks/test_bodies.py": "names_thousands_of_images"},
    ),
    Protection(
        "An image has sides that images have",
        "core/images/inspection.py",
        "        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):\n",
        "        if False:\n",
        tests={"integration/attacks/test_bodies.py": "claims_to_be_huge"},
    ),
    Protection(
        "A header is followed for some of its parts",
        "core/images/parts.py",
        "MAX_PARTS = 65_536\n",
        "MAX_PARTS = 65_536_000\n",
        tests={"integration/attacks/test_headers.py": "can_not_be_told"},
    ),
    # Memory
    Protection(
        "A host that hardly sends anything is given up",
        "core/http/download_buffer.py",
        "        if size >= self._needed:\n",
        "        if True:\n",
        tests={"integration/attacks/test_memory.py": "host_that_trickles"},
    ),
    Protection(
        "A paid answer waits for memory for a while alone",
        "core/http/exchange.py",
        "MEMORY_WAIT if self.call.billable else math.inf",
        "math.inf",
        tests={"integration/attacks/test_memory.py": "stands_still_and_fills"},
    ),
    Protection(
        "An input waits for memory before it is read",
        "core/purchase/inputs.py",
        "        await allocation.hold(allocation.taken + request.row.max_input_bytes)\n",
        "",
        tests={"unit/core/purchase/test_inputs.py": "not_read_while"},
    ),
    Protection(
        "Nothing further is paid for while images that came inside answers are over the budget",
        "core/purchase/lifecycle.py",
        "        await memory.wait_below_limit()\n",
        "",
        tests={"unit/core/purchase/test_lifecycle.py": "nothing_is_paid_for_while"},
    ),
    Protection(
        "No large answer to a poll is decoded while images are over the budget",
        "core/http/transport.py",
        "                    await image_memory.wait_below_limit()\n",
        "                    pass\n",
        tests={"unit/core/purchase/test_waiting.py": "not_decoded_while"},
    ),
    # Approvals
    Protection(
        "A manifest names the images of its record",
        "core/purchase/approval.py",
        '            if _names_the_same(manifest["images"], place.manifest["images"]):\n',
        "            if True:\n",
        tests={"integration/attacks/test_approval.py": "does_not_bear_out"},
    ),
    Protection(
        "What goes on is the file that landed",
        "core/purchase/approval.py",
        "        if hashlib.sha256(data).hexdigest() != digest:\n",
        "        if False:\n",
        tests={"integration/attacks/test_approval.py": "image_that_changes_while or not_the_one_that_landed"},
    ),
    Protection(
        "Only who is assigned lets anything go on",
        "operators/review.py",
        '            return "is from a user who is not in assigned_users"\n',
        "            return None\n",
        tests={"integration/attacks/test_approval.py": "somebody_who_is_not_assigned"},
    ),
    Protection(
        "An answer that fills in another form is one error",
        "operators/review.py",
        "        except Exception as error:  # Airflow's REST API",
        "        except ZeroDivisionError as error:  # Airflow's REST API",
        tests={"integration/attacks/test_approval.py": "fills_in_another_form"},
    ),
    # The key, and templates
    Protection(
        "What holds the key can't be pickled",
        "core/http/key_auth.py",
        '        raise TypeError("This object contains an API key and cannot be pickled.")\n',
        "        return super().__reduce__()  # type: ignore[return-value]\n",
        tests={"integration/attacks/test_keys.py": "neither_pickled"},
    ),
    Protection(
        "An error leaves a task without its frames",
        "exceptions.py",
        "        each.__traceback__ = each.__context__ = None\n",
        "",
        tests={"integration/test_privacy.py": "dropped_connection"},
    ),
    Protection(
        "A later attempt buys nothing under a root without an identity",
        "core/ledger/root_identity.py",
        "        if not self._first_attempt or (self._store.uri",
        "        if (self._store.uri",
        tests={"integration/money/test_root_moved.py": "cleared_task_buys_nothing"},
    ),
    Protection(
        "An earlier run buys nothing in the ledger that a later one started",
        "core/ledger/root_identity.py",
        "self._run.since < replaced_at",
        "False",
        tests={"integration/money/test_root_moved.py": "lets_no_earlier_run"},
    ),
    Protection(
        "What another task returned is text",
        "_compat.py",
        "        seen = seen_oids | _returned_by_a_task(self, context)\n",
        "        seen = seen_oids\n",
        tests={"integration/attacks/test_keys.py": "keyword_arguments_that_a_task_is_mapped_over"},
    ),
    # Texts and numbers of users
    Protection(
        "A pattern looks at some characters before what it looks for",
        "core/redaction/scrubbing.py",
        '_ADDRESS = rf"(?i)[a-z][a-z0-9+.-]{{0,30}}:',
        '_ADDRESS = rf"(?i)[a-z][a-z0-9+.-]*:',
        tests={"integration/attacks/test_texts.py": "no_regular_expression"},
    ),
    Protection(
        "A normal form is made piece by piece",
        "core/redaction/scrubbing.py",
        'text if len(text) > _PIECE and not text.isascii() else ""',
        '""',
        tests={"integration/attacks/test_texts.py": "hundred_kilobytes and scrub"},
    ),
    Protection(
        "What can't be read again is not written",
        "core/ledger/records.py",
        "        if len(data) > MAX_NEW_BYTES:\n",
        "        if False:\n",
        tests={"integration/attacks/test_texts.py": "too_long_to_be_kept"},
    ),
    Protection(
        "A time in a record is one",
        "core/ledger/record_values.py",
        "UnixTime = Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]\n",
        "UnixTime = Annotated[float, Field()]\n",
        tests={
            "integration/attacks/test_numbers.py": "with_a_time_or_a_count",
            "unit/gallery/test_app.py": "can_not_be_shown",
        },
    ),
    # The sandbox
    Protection(
        "The sandbox is served under its own names",
        "sandbox/app.py",
        "        if _hostname(host) not in self.hosts:\n",
        "        if False:\n",
        tests={"integration/attacks/test_sandbox.py": "led_here_by_a_name_server"},
    ),
    # The gallery
    Protection(
        "A page reads a part of the bytes of records",
        "gallery/queries.py",
        "(size > MAX_PAGE_BYTES or (fits",
        "((fits",
        tests={"unit/gallery/test_app.py": "too_much_for_one_answer or no_request_reads_more_bytes"},
    ),
    Protection(
        "A summary reads a part of the bytes of records",
        "gallery/queries.py",
        "lambda each: each[1] <= MAX_SUMMARY_BYTES",
        "lambda each: True",
        tests={"unit/gallery/test_app.py": "no_request_reads_more_bytes"},
    ),
    Protection(
        "An image is looked for in some of its places",
        "gallery/queries.py",
        "asked_last(record))[:MAX_PLACES]\n",
        "asked_last(record))\n",
        tests={"unit/gallery/test_app.py": "thousands_of_places"},
    ),
    Protection(
        "A record in whose place a huge file lies is not loaded",
        "core/ledger/records.py",
        "self.store.read(key, MAX_BYTES)",
        "self.store.read(key)",
        tests={"unit/gallery/test_app.py": "huge_file_in_the_place"},
    ),
    Protection(
        "A thumbnail in whose place a huge file lies is not loaded",
        "gallery/app.py",
        "thumbnail_key(record.key, image), MAX_THUMBNAIL_BYTES)",
        "thumbnail_key(record.key, image))",
        tests={"unit/gallery/test_app.py": "huge_file_in_the_place"},
    ),
    Protection(
        "Where there are teams a deleted DAG is nobody's",
        "gallery/app.py",
        'multi_team", fallback=False) and DagModel',
        'multi_team", fallback=False) and False and DagModel',
        tests={"unit/gallery/test_app.py": "deleted_dag"},
    ),
    Protection(
        "What took the place of an image is not shown for it",
        "gallery/app.py",
        '    if digest != image.get("sha256"):\n',
        "    if False:\n",
        tests={
            "unit/gallery/test_app.py": "in_the_place_of_the_one",
            "integration/attacks/test_headers.py": "who_looks_at_such",
        },
    ),
    # The index of open records
    Protection(
        "The entry of a record is written before the record",
        "core/ledger/records.py",
        "        if is_open(record):\n            self.open_index.add(record)\n",
        "        self.store.probe()\n",
        tests={
            "unit/core/ledger/test_open_index.py": "entry_is_written_before or without_an_entry_no_record_is",
            "unit/core/reconcile/test_open_records.py": "reads_the_open_records_only",
        },
    ),
    Protection(
        "A record that becomes open again gets an entry",
        "core/ledger/records.py",
        "            entries.step(record, wanted)\n",
        "            entries._ends = is_open(record) and not is_open(wanted)\n",
        tests={
            "unit/core/ledger/test_open_index.py": "becomes_open_again or new_extra_job",
            "unit/core/reconcile/test_open_records.py": "extra_job_is_found_by_the_entry",
        },
    ),
    Protection(
        "The entries of a record that is open again have other keys than its first",
        "core/ledger/open_index.py",
        "open_key(key, secrets.token_hex(16))",
        'open_key(key, "again")',
        tests={"unit/core/ledger/test_open_index.py": "new_extra_job"},
    ),
    Protection(
        "Without the marker of a complete index all records are read",
        "core/reconcile/open_records.py",
        "        return self.complete and not self.unreadable\n",
        "        return True\n",
        tests={
            "unit/core/reconcile/test_open_records.py": "without_the_marker_a_collect or leads_to_a_look_at_all",
        },
    ),
    Protection(
        "The index is marked as complete only if each open record has an entry",
        "core/reconcile/open_records.py",
        "self._scope.is_whole and self.failure is None and not self._dry_run:",
        "not self._dry_run:",
        tests={"unit/core/reconcile/test_open_records.py": "of_one_dag_does_not or without_all_entries"},
    ),
    Protection(
        "An entry is removed for its record's sake only if it is old",
        "core/reconcile/open_records.py",
        "    return entry.age >= STALE_SECONDS\n",
        "    return True\n",
        tests={"unit/core/reconcile/test_open_records.py": "is_a_day_old or replaced_by_entries"},
    ),
    Protection(
        "A record that could not be counted keeps its entry",
        "core/ledger/open_index.py",
        "        if self.counted([record]):\n",
        "        self.counted([record])\n        if True:\n",
        tests={"unit/core/ledger/test_summaries.py": "could_not_be_counted or damaged_summary"},
    ),
    Protection(
        "An ended record that changes gets an entry until it is counted again",
        "core/ledger/open_index.py",
        " or group_of(before, before.state) != group_of(after, after.state)\n",
        "\n",
        tests={"unit/core/ledger/test_summaries.py": "settled_otherwise"},
    ),
    Protection(
        "A record that has not just landed is read again before it is counted",
        "core/ledger/summaries.py",
        '            if record.state != "landed" or',
        "            if False and",
        tests={"unit/core/ledger/test_summaries.py": "that_is_late_does_not_count"},
    ),
    Protection(
        "A record that is counted and has an entry is counted once",
        "core/reconcile/run_totals.py",
        "            counts[counted[entry.key]] -= 1\n",
        "            pass\n",
        tests={"unit/core/reconcile/test_run_totals.py": "counted_once or running_batch"},
    ),
    Protection(
        "Open records belong to the totals of a run",
        "core/reconcile/run_totals.py",
        "    entries, damaged = _entries(ledger, run)\n",
        "    entries, damaged = [], 0\n",
        tests={
            "unit/core/reconcile/test_run_totals.py": "not_counted_is_counted or open_records_are_added",
            "matrix/test_index_rows.py": "summary_of_the_run_is_lost",
        },
    ),
    Protection(
        "The old entry of a batch is written again before a claim",
        "core/ledger/open_index.py",
        "            if self._key is None or abs(now - self._written_at) > RENEW_SECONDS:\n",
        "            if self._key is None:\n",
        tests={"unit/core/ledger/test_open_index.py": "old_entry_of_a_batch_is_written_again"},
    ),
    Protection(
        "A batch's entry stays while one of its records is open",
        "core/ledger/open_index.py",
        "not self._pending and not self._open and",
        "not self._pending and",
        tests={"unit/core/ledger/test_open_index.py": "stays_while or stays_if"},
    ),
)
