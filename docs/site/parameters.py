"""For the API page: parameters that share an entry of a docstring (``encoder, decoder``) keep their own defaults."""

import griffe


class OwnDefaults(griffe.Extension):
    """Give each documented parameter the type and default of the function's own."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Correct the docstrings of a package that has been read."""
        self._visit(pkg)

    def _visit(self, thing: griffe.Object) -> None:
        for member in thing.members.values():
            if member.is_alias:
                continue
            if member.is_class or member.is_module:
                self._visit(member)
            function = member.members.get("__init__") if member.is_class else member
            if member.docstring and function is not None and (function.is_function or member.is_class):
                self._correct(member, function)

    def _correct(self, documented: griffe.Object, function: griffe.Object) -> None:
        for section in documented.docstring.parsed:
            for entry in section.value if section.kind is griffe.DocstringSectionKind.parameters else ():
                if entry.name in (known := function.parameters):
                    entry.annotation, entry.value = known[entry.name].annotation, known[entry.name].default
