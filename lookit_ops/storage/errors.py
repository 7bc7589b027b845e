"""What storages raise, all of them.

StorageError             the storage failed or refused; worth another try unless a subclass says otherwise
├── GenerationMismatch   somebody else wrote the page; this worker must not write it any more
├── NoAnswer             the page may or may not have been written, now or at any later moment: fence before giving up
├── NameTaken            the name holds other contents already; another try will not help
│   └── PathTaken        a folder cannot have a file and a folder of one name
├── NoSuchObject         nothing has this name
├── UploadForgotten      an upload in pieces was forgotten by the storage: begin it again
├── VideoChanged         a video is not what the listing said
├── VideoUnreadable      one video cannot be read now; others may well be
└── WrongEnvironment     the bucket is another environment's; another try will not help
"""

from __future__ import annotations


class StorageError(Exception):
    """The storage failed or refused. The message is one or two sentences an operator can act on."""


class GenerationMismatch(StorageError):
    """Somebody else wrote the page since it was seen."""


class NoAnswer(StorageError):
    """Whether the page was written is not known, and the write may still arrive."""


class NameTaken(StorageError):
    """An object of this name has other contents, and may not be replaced."""


class PathTaken(NameTaken):
    """A file is where a folder is needed, or the other way round, which a bucket that is a folder cannot have."""


class NoSuchObject(StorageError):
    """The bucket has nothing of this name."""


class WrongEnvironment(StorageError):
    """The bucket is marked as another environment's."""


class UploadForgotten(StorageError):
    """The storage has forgotten an upload in its middle: send the part again from its beginning."""


class VideoChanged(StorageError):
    """The video is not, or no longer, what the listing said; list again."""


class VideoUnreadable(StorageError):
    """This video cannot be read now, others may well be. `reason` says why, for the list of an archive's videos."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
