"""What all tests share: a property's example may take its time on a busy machine."""

from hypothesis import settings

settings.register_profile("patient", parent=settings.default, deadline=None)
settings.load_profile("patient")
