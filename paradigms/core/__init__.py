"""The floor that every paradigm stands on: one train state, learners, transformations, one loop."""
