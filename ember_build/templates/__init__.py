"""Bundles that serve as templates: the bundle of one study turned into that of another, without a build."""
