"""How much of a picture or a video is accepted, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.errors import MediaError


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLimits:
    """Limits on what a request may bring; none is meant to be met by honest use.

    Attributes:
        max_pixels: pixels of one picture or frame, checked from the header, before decoding.
        max_bytes: bytes of one body: a download, a data: URL, or bytes given directly. Local files may be larger.
        max_images: pictures of one request.
        max_videos: videos of one request.
        max_frames: what `max_num_frames` of a request may be: frames taken from one video, each of which may have
            others stacked beside it: sixteen times as many in all.
        connect_seconds: to connect to a media host, and longest silence from it.
        total_seconds: for a whole download, from connecting to the last byte.
        private_hosts: host names or addresses exempt from the rule that only public addresses are fetched from.
        fetch_urls: False refuses http(s) URLs altogether.
        file_roots: folders within which file: URLs may name a file; none are read without.
        damaged_clips: whether a video may have lost packets, or frames that cannot be decoded, which those before them
            stand in for.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 20 * 2**20
    max_images: int = 16
    max_videos: int = 4
    max_frames: int = 128
    connect_seconds: float = 5.0
    total_seconds: float = 20.0
    private_hosts: tuple[str, ...] = ()
    fetch_urls: bool = True
    file_roots: tuple[str, ...] = ()
    damaged_clips: bool = True

    def check_pixels(self, height: int, width: int, name: str) -> None:
        """Refuse a picture that is too large, or has no area."""
        if height < 1 or width < 1:
            raise MediaError(f"{name} is {height} x {width} pixels (height x width), expected at least 1 x 1")
        if height * width > self.max_pixels:
            raise MediaError(
                f"{name} is {height} x {width} pixels (height x width), more than {self.max_pixels} in all",
                hint="Scale it down first.",
            )

    def check_bytes(self, count: int, name: str) -> None:
        """Refuse a body that is too large."""
        if count > self.max_bytes:
            raise MediaError(f"{name} has more than {self.max_bytes} bytes", hint="Send a smaller file.")

    def check_counts(self, images: int, videos: int = 0) -> None:
        """Refuse a request with too many pictures or videos; call it before the first is fetched."""
        if images > self.max_images:
            raise MediaError(f"The request has {images} pictures, at most {self.max_images} are accepted")
        if videos > self.max_videos:
            raise MediaError(f"The request has {videos} videos, at most {self.max_videos} are accepted")

    def check_frames(self, max_num_frames: int, stack_frames: int = 1) -> None:
        """Refuse a request for too many frames of a video; call it before anything is fetched."""
        if max_num_frames > self.max_frames:
            raise MediaError(
                f"max_num_frames={max_num_frames} asks for too many frames, at most {self.max_frames} are taken",
                hint="Lower max_num_frames.",
            )
        if max_num_frames * stack_frames > 16 * self.max_frames:
            raise MediaError(
                f"max_num_frames={max_num_frames} with stack_frames={stack_frames} asks for too many frames, at most "
                f"{16 * self.max_frames} are taken",
                hint="Lower one of the two.",
            )
