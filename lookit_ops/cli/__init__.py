"""The command line `lookit-ops`: one file for each noun, all errors of people shown in one sentence."""
