"""Other formats and libraries: what they hold becomes a store, and the other way round."""
