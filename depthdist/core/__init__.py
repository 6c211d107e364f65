"""What every command stands on: settings, commands, errors, files, the machine."""
