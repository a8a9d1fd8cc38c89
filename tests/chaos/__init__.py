"""The proof behind 'survives anything': what a run goes through here, and that its end is the undisturbed one.

``make chaos`` runs all of it and writes ``docs/chaos.md``.
"""
