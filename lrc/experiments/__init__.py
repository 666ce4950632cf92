"""What the book trains, measures and records: recipes, the zoo, studies, profiles and claims.

It may use every other room; of it only the command line, the book and the public names of `lrc` know.
"""
