"""Words that rhyme: a recipe for posttrain, found by its entry point."""
