"""Changes between a connection and the model: responses, streams, the log, and the end of a server that hangs."""

from __future__ import annotations

from mutants.mutant import of

MUTANTS = [
    *of(
        "server/responses.py",
        "server/test_responses.py",
        ('return re.sub(r"\\bmax_tokens\\b", "max_output_tokens", message)', "return message"),
        ("return places[int(found[1])] if", "return places[int(found[1]) - 1] if"),
        ('has_logprobs="logprobs" in asked.options', "has_logprobs=False"),
        ("ids.index(end) + 1 if", "ids.index(end) if"),
        ("            log_fault(error)\n", ""),
        (
            '            for one in stream.fail(error_response(error)[1]["error"]["message"]):',
            "            for one in ():",
        ),
    ),
    *of(
        "protocol/responses_request.py",
        "protocol/test_responses_request.py",
        ('in OPTIONS.items() if name != "n"}', "in OPTIONS.items()}"),
        ('if "logprobs" in options and options.get("enable_thinking"):', "if False:"),
        (" or len(choice) != 2:", ":"),
        ('"tool_choice": choice, **parallel}', '"tool_choice": choice}'),
        ('if wanted.get("type") == "text" and len(wanted) == 1:', 'if wanted.get("type") == "text":'),
        ('    if "tools" in options:  #', "    if False:  #"),
        ("    if count:\n", "    if False:\n"),
        ('text.get("format") or {"type": "text"}', 'text.get("format")'),
    ),
    *of("api/async_vlm.py", "api/test_async_vlm.py", ("workers, start=True", "workers, start=False")),
    *of("api/many.py", "api/test_async_vlm.py", ("            all_here.abort()\n", "")),
    *of("machine.py", "test_heaps.py", ("mallopt(_M_ARENA_MAX, 1)", "mallopt(_M_ARENA_MAX, 0)")),
    *of(
        "server/log_writer.py",
        "server/test_log_writer.py",
        ("self._lines.qsize() < MAX_WAITING", "True"),
        ("self._reported += lost", "pass"),
        ("data = data[os.write(self._descriptor, data) :]", "os.write(self._descriptor, data); break"),
    ),
    *of(
        "server/run.py",
        "server/test_drain.py",
        ("                model.engine.abort_all()", "                pass"),
    ),
    *of(
        "server/guard.py",
        "server/test_drain.py",
        ("            if not self._guard.is_draining():\n", "            if True:\n"),
    ),
    *of("server/exchange.py", "server/test_request_log.py", ("self.status or 499", "self.status")),
    *of(
        "server/request_log.py",
        "server/test_request_log.py",
        ("if exchange.settings.log_content:", "if True:"),
        ("exchange.question[:MAX_CONTENT]", "exchange.question"),
        ("and not _is_plain(value)", "and False"),
        ("if record.exc_info:", "if False:"),
        ("root.setLevel(logging.WARNING)", "root.setLevel(logging.INFO)"),
    ),
    *of(
        "server/connection.py",
        "server/test_back_pressure.py",
        (
            "len(self.connections) > self.settings",
            "len(self.connections) >= self.settings",
            "test_more_connections_than_allowed_are_503_and_the_others_go_on",
        ),
        (
            "            self._head_timer = self.loop.call_later(self.settings.header_seconds, self.transport.abort)",
            "            pass",
            "test_a_head_that_does_not_come_is_cut_off",
        ),
        (
            '            self._stop_timer("_head_timer")\n        else:',
            "            pass\n        else:",
            "test_an_answer_may_take_longer_than_a_head_may",
        ),
    ),
    *of(
        "server/connection.py",
        "server/test_hostile_http.py",
        (
            "if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):",
            "if True:",
            "test_nonsense_behind_a_refusal_ends_the_connection_without_a_fault",
        ),
    ),
    *of(
        "server/watchdog.py",
        "server/test_watchdog.py",
        ("if self._engine.is_stepping and step ==", "if step =="),
        ("is_stepping and step == self._engine.steps else 0", "is_stepping else 0"),
        ("if same_step >= looks:", "if same_step > looks:"),
        ("if same_beat >= looks + 1:", "if False:"),
        ("if beats == self._beats else 0", "if beats == self._beats else same_beat"),
        ("        self._engine.give_up(reason)\n", ""),
        ("GRACE, exit=True", "GRACE, exit=False"),
    ),
    *of(
        "server/event_stream.py",
        "server/test_event_stream.py",
        ('        del self.headers["content-length"]\n', ""),
        ("asyncio.timeout(self._send_seconds)", "asyncio.timeout(None)"),
        ("return_when=asyncio.FIRST_COMPLETED", "return_when=asyncio.ALL_COMPLETED"),
        (" and not isinstance(fault, TimeoutError):", ":"),
        ("                task.cancel()", "                pass"),
    ),
]
