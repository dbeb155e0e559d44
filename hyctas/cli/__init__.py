"""The commands. They parse; `hyctas.commands` works. No torch here."""
