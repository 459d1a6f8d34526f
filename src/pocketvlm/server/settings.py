"""Every setting of the server: of an option, a `POCKETVLM_…` variable or a TOML file, in this order, or its default."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.config_ranges import ENGINE
from pocketvlm.errors import ConfigError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.ranges import Range, show

if TYPE_CHECKING:
    from pocketvlm.engine.config import EngineConfig

PREFIX = "POCKETVLM_"
SECONDS = Range(float, 0.1, 86400.0)
_DEFAULTS = MediaLimits()
# Options that are given once for each item of a list.
_SINGULAR = {
    "api_keys": "api_key",
    "served_model_names": "served_model_name",
    "cors_origins": "cors_origin",
    "private_hosts": "private_host",
    "media_roots": "media_root",
    "mcp_roots": "mcp_root",
    "allowed_hosts": "allowed_host",
    "adapters": "adapter",
    "adapter_roots": "adapter_root",
}
# Groups of settings, by the first of each in their order: titles for people.
GROUPS = {
    "model": "the model",
    "host": "where it is served, and under what names",
    "api_keys": "access",
    "fetch_urls": "where pictures and videos may come from",
    "max_in_flight": "load",
    "max_num_seqs": "the engine; by default it chooses by the memory of the machine, or of its container",
    "max_body_bytes": "limits of one request",
    "header_seconds": "time limits, in seconds",
    "log_format": "logs and traces",
}
_SENDABLE = re.compile(r"[!-~]+")  # what an HTTP header carries to us unchanged


def _setting(default: Any, text: str, allowed: Range | tuple[str, ...] | None = None) -> Any:
    """A field; `allowed` is the range of a number, or the words that a text may be."""
    return field(default=default, metadata={"help": text, "allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server allows. The defaults suit one machine whose users do not know each other."""

    model: str = _setting("nano", "nano (part of the package), a checkpoint directory or a hub id")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _setting("auto", "auto, float32, bfloat16 or float16")
    runtime: str = _setting("auto", "auto, torch, or onnx (ONNX Runtime, on a CPU)")
    quantization: str = _setting(
        "auto", "for the onnx runtime: auto, none, int8, int4, or by part, such as decoder=int4,…"
    )
    adapters: tuple[str, ...] = _setting(
        (), "NAME=DIR: a folder that PEFT wrote for the model; requests choose it by NAME as their model"
    )
    adapter_roots: tuple[str, ...] = _setting(
        (), "folder below which POST /v1/load_lora_adapter may load adapters; without one it is off"
    )
    max_adapters: int = _setting(64, "most adapters that are loaded at the same time", Range(int, 1, 10_000))
    adapter_memory: int = _setting(
        2**30,
        "most bytes of all adapters, beyond which POST /v1/load_lora_adapter loads no more",
        Range(int, 0, 2**50),
    )
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 listens on all interfaces")
    port: int = _setting(8000, "port to listen on; 0 picks a free port", Range(int, 0, 65535))
    served_model_names: tuple[str, ...] = _setting(
        (), "name that requests may use for the model; responses show the first"
    )
    page: bool = _setting(True, "serve the web page at /, for asking about pictures in a browser")
    docs: bool = _setting(False, "serve the OpenAPI description at /openapi.json")
    mcp: bool = _setting(False, "serve tools for agents at /mcp (Model Context Protocol; needs the extra mcp)")
    mcp_roots: tuple[str, ...] = _setting((), "folder whose files agents may read; none by default")
    api_keys: tuple[str, ...] = _setting(
        (), "key that clients send as `Authorization: Bearer KEY`; without keys, anyone may ask"
    )
    api_key_file: str = _setting(
        "", "file with one key per line: the key or its `sha256:HEX`, then limits for that key"
    )
    cors_origins: tuple[str, ...] = _setting((), "origin whose web pages may call the API; none by default")
    allowed_hosts: tuple[str, ...] = _setting(
        (), "host name accepted besides the server's address and localhost, at /mcp and when listening on loopback"
    )
    fetch_urls: bool = _setting(True, "fetch http(s) URLs of public addresses")
    private_hosts: tuple[str, ...] = _setting((), "host to fetch from although its address is not public")
    media_roots: tuple[str, ...] = _setting(
        (), "folder whose files requests may read through file: URLs; none by default"
    )
    max_in_flight: int = _setting(
        256, "most requests running and waiting; further ones get 429", Range(int, 1, 100_000)
    )
    max_held_bytes: int = _setting(
        2**30,
        "most bytes of bodies, downloads and preprocessed pictures of all requests in flight; beyond that, 429",
        Range(int, 2**16, 2**50),
    )
    max_connections: int = _setting(1000, "most open connections; further ones get 503", Range(int, 1, 100_000))
    preprocess_processes: int = _setting(
        2, "processes that decode media; 0 decodes inside the server process", Range(int, 0, 64)
    )
    preprocess_threads: int = _setting(
        64,
        "most requests whose media and prompt are prepared at the same time; as many again that fetch from other hosts",
        Range(int, 1, 1024),
    )
    max_num_seqs: int | None = _setting(None, "most sequences that run at the same time", ENGINE["max_num_seqs"])
    cache_memory: int | None = _setting(
        None, "bytes for keys, values and states of running sequences", ENGINE["cache_memory"]
    )
    prefix_cache_memory: int | None = _setting(
        None, "bytes for prompt prefixes kept for reuse; 0 keeps none", ENGINE["prefix_cache_memory"]
    )
    encoder_cache_memory: int | None = _setting(
        None, "bytes for picture features kept for reuse", ENGINE["encoder_cache_memory"]
    )
    max_body_bytes: int = _setting(64 * 2**20, "largest request body", Range(int, 1024, 2**31))
    max_json_depth: int = _setting(64, "deepest nesting of a JSON body", Range(int, 8, 500))
    max_json_values: int = _setting(250_000, "most commas and brackets in a JSON body", Range(int, 100, 10**7))
    max_messages: int = _setting(1024, "most messages in a request", Range(int, 1, 10**6))
    max_parts: int = _setting(
        4096, "most parts (texts, pictures, videos) in all messages of a request", Range(int, 1, 10**6)
    )
    max_text_bytes: int = _setting(
        2**20, "most bytes of text in all messages and tools of a request", Range(int, 1, 2**31)
    )
    max_answer_tokens: int = _setting(32768, "most tokens of one answer", Range(int, 1, 10**6))
    max_n: int = _setting(8, "most answers to one request (n)", Range(int, 1, 128))
    max_images: int = _setting(_DEFAULTS.max_images, "most pictures in a request", Range(int, 0, 10_000))
    max_videos: int = _setting(_DEFAULTS.max_videos, "most videos in a request", Range(int, 0, 1000))
    max_frames: int = _setting(_DEFAULTS.max_frames, "most frames sampled from a video", Range(int, 1, 100_000))
    max_media_bytes: int = _setting(_DEFAULTS.max_bytes, "largest picture or video file", Range(int, 1, 2**31))
    max_pixels: int = _setting(
        _DEFAULTS.max_pixels,
        "most pixels of one picture or frame, read from its header before it is decoded",
        Range(int, 1, 2**31),
    )
    header_seconds: float = _setting(10.0, "longest time for the request headers to arrive", SECONDS)
    upload_seconds: float = _setting(60.0, "longest time for the whole request body to arrive", SECONDS)
    fetch_connect_seconds: float = _setting(
        _DEFAULTS.connect_seconds, "longest time to connect to a host of media, and between two reads from it", SECONDS
    )
    fetch_seconds: float = _setting(
        _DEFAULTS.total_seconds, "longest time for a whole download; three times that for all of a request", SECONDS
    )
    decode_seconds: float = _setting(
        60.0, "longest time to decode the media of a request, if preprocess_processes is not 0", SECONDS
    )
    send_seconds: float = _setting(
        30.0, "longest time for a client to read one piece of a stream; then it is disconnected", SECONDS
    )
    request_seconds: float = _setting(
        600.0, "longest time from the arrival of a request to the end of its answer; then 504", SECONDS
    )
    drain_seconds: float = _setting(30.0, "longest time for running answers to finish after SIGTERM or Ctrl-C", SECONDS)
    watchdog_seconds: float = _setting(
        300.0,
        "longest time for one step of the engine or of the event loop; a longer one ends the process with status 70",
        SECONDS,
    )
    log_format: str = _setting("text", "format of the log on stderr, one line per request", ("text", "json"))
    otlp_endpoint: str = _setting("", "URL to send traces to (OpenTelemetry, OTLP over HTTP; needs the extra otel)")
    log_content: bool = _setting(False, "also log questions and answers, which may be private")

    def __post_init__(self) -> None:
        for one in fields(self):
            allowed, value = one.metadata["allowed"], getattr(self, one.name)
            if isinstance(allowed, Range):
                object.__setattr__(self, one.name, allowed.check(one.name, value))
            elif isinstance(one.default, tuple):
                if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
                    what = "no such list" if one.name == "api_keys" else show(value)  # keys are shown to nobody
                    raise ConfigError(f"{one.name} is {what}, expected a list of texts, none of them empty")
                object.__setattr__(self, one.name, tuple(value))
            elif not isinstance(value, type(one.default)):
                raise ConfigError(f"{one.name} is {show(value)}, expected {type(one.default).__name__}")
            elif allowed is not None and value not in allowed:
                raise ConfigError(f"{one.name} is {show(value)}, expected {' or '.join(allowed)}")
        if not all(_SENDABLE.fullmatch(key) for key in self.api_keys):
            message = "api_keys has a key that no client can send"
            raise ConfigError(message, hint="Use letters, digits and signs of ASCII, without spaces.")
        for name, hosts in (("allowed_hosts", self.allowed_hosts), ("private_hosts", self.private_hosts)):
            for host in hosts:
                if not _is_host(host.strip("[]") if name == "allowed_hosts" else host):
                    hint = "Example: reader.lan, without http:// in front and without a port behind it."
                    raise ConfigError(f"{name} has {show(host, 80)}, expected the name of a host", hint=hint)
        for origin in self.cors_origins:
            if not _is_origin(origin):
                hint = "Example: https://reader.example, without anything behind the host and its port."
                raise ConfigError(f"cors_origins has {show(origin, 80)}, expected an origin or *", hint=hint)
        if self.max_held_bytes < self.max_body_bytes:
            raise ConfigError(
                f"max_held_bytes={self.max_held_bytes} is less than max_body_bytes={self.max_body_bytes}: "
                "the largest body would never be taken",
                hint="Raise the first or lower the second.",
            )
        _ = self.adapter_folders
        for name in ("media_roots", "mcp_roots", "adapter_roots"):
            for root in getattr(self, name):
                if not Path(root).is_dir():
                    raise ConfigError(f"{name} has {show(root, 80)}, which is no folder")

    @property
    def adapter_folders(self) -> dict[str, Path]:
        """Folders of adapters by their names."""
        folders: dict[str, Path] = {}
        for text in self.adapters:
            name, _, folder = (part.strip() for part in text.partition("="))
            if not name or not folder:
                hint = "Example: --adapter receipts=adapters/receipts"
                raise ConfigError(f"adapters has {show(text, 80)}, expected NAME=DIR", hint=hint)
            if bare_name(name) in map(bare_name, (*folders, *self.served_model_names)):
                raise ConfigError(f"adapters has the name {show(name, 80)}, which is taken")
            folders[name] = Path(folder)
        if len(folders) > self.max_adapters:
            hint = "Raise max_adapters, or serve fewer."
            raise ConfigError(f"adapters has {len(folders)} of them, max_adapters={self.max_adapters}", hint=hint)
        return folders

    @property
    def engine_config(self) -> EngineConfig:
        """Of the engine."""
        from pocketvlm.engine.config import EngineConfig  # brings the engine, which options do without

        return EngineConfig(
            max_num_seqs=self.max_num_seqs,
            cache_memory=self.cache_memory,
            prefix_cache_memory=self.prefix_cache_memory,
            encoder_cache_memory=self.encoder_cache_memory,
        )

    @property
    def media_limits(self) -> MediaLimits:
        """Of the processor."""
        return MediaLimits(
            max_pixels=self.max_pixels,
            max_bytes=self.max_media_bytes,
            max_images=self.max_images,
            max_videos=self.max_videos,
            max_frames=self.max_frames,
            connect_seconds=self.fetch_connect_seconds,
            total_seconds=self.fetch_seconds,
            private_hosts=self.private_hosts,
            fetch_urls=self.fetch_urls,
            file_roots=tuple(str(Path(root).absolute()) for root in self.media_roots),
        )

    @classmethod
    def read(
        cls, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: Path | None = None
    ) -> ServerSettings:
        """Settings of all three sources; what none of them gives is the default.

        Raises:
            ConfigError: a setting that does not exist, or a value of another kind or outside its range; the message
                names the setting.
        """
        known = {one.name: one for one in fields(cls)}
        _check_variables(environment, known)
        values: dict[str, Any] = {}
        if file is not None:
            values |= _of_file(file, known.keys())
        for name, one in known.items():
            text = environment.get(f"{PREFIX}{name.upper()}")
            if text is not None:
                if name == "api_keys" and not text.strip(" ,"):  # a server taken for closed must not be open
                    raise ConfigError(f"{PREFIX}API_KEYS is set and has no key", hint="Give one, or unset it.")
                values[name] = _of_text(f"{PREFIX}{name.upper()}", text, one.default, kind_of(one))
        values |= {name: value for name, value in options.items() if value is not None}
        if values.get("api_key_file") == "":
            raise ConfigError("api_key_file is given and names no file", hint="Name one, or leave it out.")
        return cls(**values)


def _is_host(text: str) -> bool:
    """Whether it is what the host of an address is compared with."""
    try:
        return re.fullmatch(r"[A-Za-z0-9._-]+", text) is not None or bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    """Whether a browser may send it as `Origin`."""
    if text in ("*", "null", "file://"):
        return True
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]+))?", text)
    return found is not None and (found[1], found[2]) not in (("http", "80"), ("https", "443"))


def bare_name(name: str) -> str:
    """A model's name as Ollama's clients mean it, who may put `:latest` behind it."""
    return name.removesuffix(":latest")


def kind_of(setting: Field[Any]) -> type[Any]:
    """What a setting is, also where it is left to be chosen."""
    return type(setting.default) if setting.default is not None else setting.metadata["allowed"].kind


def option_of(name: str) -> str:
    """The option of the command line for a setting: of a list, one for each item."""
    return f"--{_SINGULAR.get(name, name).replace('_', '-')}"


def shown_default(value: Any) -> str:
    """A default as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if isinstance(value, int) and value and value % size == 0:
            return f"{value}, which is {value // size} {unit}"
    return "automatic" if value is None else "none" if value in ((), "") else str(value)


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name.lower(), known, 1)
    return f"Did you mean {near[0]}?" if near else "`pocketvlm serve --help` and docs/serving.md have all of them."


def _check_variables(environment: Mapping[str, str], known: Collection[str]) -> None:
    """`ConfigError` for a variable that is a setting but for a slip: a limit that somebody takes for set would not be.
    Others may be of other programs, and are none of ours."""
    for variable in environment:
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in known and (near := get_close_matches(name, known, 1, 0.85)):
            raise ConfigError(f"{variable} is no setting", hint=f"Did you mean {PREFIX}{near[0].upper()}?")


def _of_file(file: Path, known: Any) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        what = f"cannot be read: {reason}" if reason else f"is no TOML: {error}"
        raise ConfigError(f"{str(file)!r:.80} {what}") from None
    for name in values:
        if name not in known:
            raise ConfigError(f"{file} has the setting {show(name)}, which does not exist", hint=_meant(name, known))
    return values


def _of_text(name: str, text: str, default: Any, kind: type[Any]) -> Any:
    """The value that a variable stands for, by the kind of its setting."""
    if isinstance(default, tuple):
        return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)
    if isinstance(default, bool):
        if text.lower() not in ("0", "1", "true", "false"):
            raise ConfigError(f"{name} is {show(text)}, expected 0 or 1")
        return text.lower() in ("1", "true")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{name} is {show(text)}, expected a number") from None
    return text
