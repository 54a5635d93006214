"""The exception tree. Every error says what was given, what is needed and what to do.

PatchscopesError                what the user can mend: exit code 2 on the command line
├── SpecError                   the request itself is wrong; found before anything runs
│   ├── LayerError              a layer outside 0…n_layers, or not a layer at all
│   ├── PositionError           a position or phrase that does not name one place in the source
│   ├── PlaceholderError        "{}" absent, or not exactly one token
│   ├── PromptError             no such library prompt, or one that this model cannot use
│   ├── SourceError             an empty or unreadable source
│   ├── DataError               a data set that cannot be read, or has nothing that can be used
│   ├── VocabularyError         a token that the model has no embedding for
│   ├── CandidateError          an answer that does not continue the inspection prompt
│   ├── ContextLengthError      prompt plus new tokens beyond the model's context
│   ├── OptionError             an option with a value that it cannot take
│   ├── MappingError            a mapping or lens for other weights or layers, or one that cannot be fitted or read
│   └── SpecFileError           a specification file that cannot be read, or a key of it that is wrong
├── ModelError                  the model cannot be used
│   ├── UnknownModelError       neither a registry name, nor a path, nor a hub id that resolves
│   ├── ModelFilesError         files missing, damaged or with a wrong hash
│   ├── UnsupportedModelError   a kind of model that Patchscopes does not (yet) mean anything on
│   ├── SelfCheckError          the model does not obey docs/semantics.md
│   ├── ModelChangedError       the model in memory was changed while it ran
│   ├── ModelRunError           the model, or a library that runs it, raises while it runs
│   └── DeviceError             a dtype or device that is not there
├── PullError                   a download that did not succeed
├── OutOfMemoryError            the model or a single row does not fit in memory
├── StoreError                  a run directory that cannot be written or read, or is none
│   ├── RunInUseError           another process is writing to it
│   └── RunChangedError         it holds a run of another specification or model
├── HomeError                   there is no folder of this user's to keep things in
└── OutputError                 results cannot be written where asked
"""

__all__ = [
    "CandidateError",
    "ContextLengthError",
    "DataError",
    "DeviceError",
    "HomeError",
    "LayerError",
    "MappingError",
    "ModelChangedError",
    "ModelError",
    "ModelFilesError",
    "ModelRunError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "PatchscopesError",
    "PatchscopesWarning",
    "PlaceholderError",
    "PositionError",
    "PromptError",
    "PullError",
    "RunChangedError",
    "RunInUseError",
    "SelfCheckError",
    "SourceError",
    "SpecError",
    "SpecFileError",
    "StoreError",
    "UnknownModelError",
    "UnsupportedModelError",
    "VocabularyError",
]


class PatchscopesError(Exception):
    """Base of every error that the user can mend."""


class SpecError(PatchscopesError, ValueError):
    """The request is wrong; nothing was run."""


class LayerError(SpecError):
    """A layer outside 0…n_layers, or a layer specification that cannot be read."""


class PositionError(SpecError):
    """A position or phrase that does not name one place in the source."""


class PlaceholderError(SpecError):
    """The placeholder is absent, or is not exactly one token."""


class PromptError(SpecError):
    """No such library prompt, or one that this model cannot use."""


class SourceError(SpecError):
    """A source that is empty or cannot be read."""


class DataError(SpecError):
    """A data set that cannot be read, or in which nothing can be used (docs/data.md)."""


class CandidateError(SpecError):
    """An answer to score that does not continue the inspection prompt's tokens."""


class VocabularyError(SpecError):
    """A token that the model has no embedding for."""


class ContextLengthError(SpecError):
    """A prompt plus its new tokens is longer than the model's context."""


class OptionError(SpecError):
    """An option with a value that it cannot take."""


class MappingError(SpecError):
    """A mapping or lens that belongs to other weights or layers, or that cannot be fitted or read."""


class SpecFileError(SpecError):
    """A specification file that cannot be read, or a key of it that is unknown or has a wrong value."""


class ModelError(PatchscopesError):
    """The model cannot be used."""


class UnknownModelError(ModelError):
    """The name is neither a registry name, nor a path, nor a hub id that resolves."""


class ModelFilesError(ModelError):
    """Model files are missing, damaged or have the wrong hash."""


class UnsupportedModelError(ModelError):
    """A kind of model that Patchscopes do not support."""


class SelfCheckError(ModelError):
    """The model does not obey the semantics (docs/semantics.md)."""


class ModelChangedError(ModelError):
    """The model in memory was changed while it ran, so that rows would be of two models (rule 0).

    `rows` are the numbers of all rows that were given since the model was last seen unchanged.
    """

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class ModelRunError(ModelError):
    """The model, or a library that runs it, raised an error while it ran; that error is the cause of this one."""


class DeviceError(ModelError):
    """A dtype or device that is not available here."""


class PullError(PatchscopesError):
    """A download that did not succeed."""


class OutOfMemoryError(PatchscopesError):
    """Memory ran out with a single row, or as the model was loaded."""


class StoreError(PatchscopesError):
    """A run directory that cannot be written or read, or is none."""


class RunInUseError(StoreError):
    """Another process is writing to the run directory."""


class RunChangedError(StoreError):
    """The run directory holds a run of another specification or model; the message says what differs."""


class HomeError(PatchscopesError):
    """There is no folder of this user's to keep models, kernels and lenses in."""


class OutputError(PatchscopesError):
    """Results cannot be written where they were asked for."""


class PatchscopesWarning(UserWarning):
    """Something that the user should know before believing a result."""
