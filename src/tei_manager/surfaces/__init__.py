"""Wire formats: parse, call one verb, render. No decisions."""
