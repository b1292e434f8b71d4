"""Wrong input, an unusable clip, a run that failed, and damage that was passed over."""


class InputError(ValueError):
    """A config, argument or file that cannot be used as asked: the program ends with exit code 2 and this one line."""


class DecodeError(ValueError):
    """One audio file or tar member that cannot be used; the message is the reason."""


class RunFailed(RuntimeError):
    """A run that stopped for good while it was running; the message says where and why."""


class DamageWarning(UserWarning):
    """Something damaged was passed over, and something else is used instead; the message says what and what."""
