# A stub of nixpkgs' `lib`, for machines that cannot fetch nixpkgs.
#
# It has only the functions that hubcache's module and flake use, and a module system of
# a few rules: imports, options, mkIf, mkMerge, priorities, submodules with a freeform
# type. It is strict where the real one is (unknown options, wrong types, two values
# for one option) and checks nothing else. nixpkgs may refuse what it accepts: to check that,
# set HUBCACHE_NIXPKGS_LIB to the lib/ of a checkout.
let
  inherit (builtins)
    all any attrNames attrValues concatLists concatMap concatStringsSep elem filter foldl' functionArgs
    hasAttr head intersectAttrs isAttrs isBool isFloat isFunction isInt isList isPath isString length
    listToAttrs map mapAttrs match removeAttrs storeDir stringLength substring tail toJSON typeOf
    ;

  show = concatStringsSep ".";
  is = kind: v: isAttrs v && v._type or null == kind;
  isDerivation = v: isAttrs v && v.type or null == "derivation";
  isPlain = v: isAttrs v && !(v ? _type) && !isDerivation v;
  hasPrefix = p: s: substring 0 (stringLength p) s == p;
  unique = foldl' (acc: x: if elem x acc then acc else acc ++ [ x ]) [ ];
  genAttrs = names: f: listToAttrs (map (name: { inherit name; value = f name; }) names);

  mkOption = o: o // { _type = "option"; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };

  # pushDown turns one configuration into plain attribute sets, and moves conditions and
  # priorities to the values.
  pushDown = c:
    if is "merge" c then concatMap pushDown c.contents
    else if is "if" c then map (mapAttrs (_: mkIf c.condition)) (pushDown c.content)
    else if is "override" c then map (mapAttrs (_: mkOverride c.priority)) (pushDown c.content)
    else [ c ];

  # settle turns one definition into the values that apply, with their priorities.
  settle = v:
    if is "merge" v then concatMap settle v.contents
    else if is "if" v then (if v.condition then settle v.content else [ ])
    else if is "override" v then map (d: d // { inherit (v) priority; }) (settle v.content)
    else [ { priority = 100; value = v; } ];

  evalOption = loc: opt: defs:
    let
      defaults = if opt ? default then [ (mkOverride 1500 opt.default) ] else [ ];
      settled = concatMap settle (defs ++ defaults);
      lowest = foldl' (p: d: if d.priority < p then d.priority else p) 9999 settled;
      values = map (d: d.value) (filter (d: d.priority == lowest) settled);
      type = opt.type or types.unspecified;
      value =
        if settled == [ ] then
          if type ? emptyValue then type.emptyValue
          else throw "The option `${show loc}' was accessed but has no value defined."
        else merge loc type values;
    in
    (opt.apply or (x: x)) value;

  merge = loc: type: values:
    let bad = filter (v: !type.check v) values; in
    if bad != [ ] then
      throw "A definition for option `${show loc}' is not of type `${type.description}': ${typeOf (head bad)}"
    else
      type.merge loc values;

  # evalTree evaluates option declarations with configurations. freeform is the type of values
  # that no option declares, or null.
  evalTree = loc: freeform: trees: configs:
    let
      defs = concatMap pushDown configs;
      names = unique (concatMap attrNames trees);
      declared = genAttrs names (n:
        let
          here = map (t: t.${n}) (filter (hasAttr n) trees);
          given = map (d: d.${n}) (filter (hasAttr n) defs);
          path = loc ++ [ n ];
        in
        if any (is "option") here then evalOption path (foldl' (a: b: a // b) { } here) given
        else evalTree path null here given);
      rest = filter (d: d != { }) (map (d: removeAttrs d names) defs);
      stray = filter (n: any (hasAttr n) rest) (unique (concatMap attrNames rest));
    in
    if freeform != null then (if rest == [ ] then { } else merge loc freeform rest) // declared
    else if stray != [ ] then throw "The option `${show (loc ++ [ (head stray) ])}' does not exist."
    else declared;

  # evalModules returns the configuration and the declared options of modules.
  evalModules = { modules, specialArgs ? { }, prefix ? [ ] }:
    let
      args = specialArgs // { inherit config lib; };
      load = m:
        let
          opened = if isFunction m || isAttrs m then m else import m;
          body =
            if isFunction opened then opened (intersectAttrs (functionArgs opened) args // (if functionArgs opened == { } then args else { }))
            else opened;
          long = body ? config || body ? options || body ? imports || body ? freeformType;
          known = [ "imports" "options" "config" "freeformType" "meta" "_file" "_class" ];
          unknown = filter (n: !elem n known) (attrNames body);
          own =
            if !long then { options = { }; config = body; freeformType = null; }
            else if unknown != [ ] then throw "A module has the unknown attribute `${head unknown}'."
            else { options = body.options or { }; config = body.config or { }; freeformType = body.freeformType or null; };
        in
        [ own ] ++ concatMap load (body.imports or [ ]);
      loaded = concatMap load modules;
      freeforms = filter (f: f != null) (map (m: m.freeformType) loaded);
      options = map (m: m.options) loaded;
      config = evalTree prefix (if freeforms == [ ] then null else head freeforms) options (map (m: m.config) loaded);
    in
    { inherit config options; };

  one = loc: values:
    if all (v: v == head values) values then head values
    else throw "The option `${show loc}' has conflicting definitions.";
  simple = description: check: { inherit description check; merge = one; };

  types = {
    unspecified = simple "unspecified value" (_: true);
    anything = types.unspecified;
    raw = types.unspecified;
    bool = simple "boolean" isBool;
    int = simple "signed integer" isInt;
    float = simple "floating point number" isFloat;
    str = simple "string" isString;
    nonEmptyStr = simple "non-empty string" (v: isString v && match "[[:space:]]*" v == null);
    lines = { description = "strings concatenated with \"\\n\""; check = isString; merge = _: concatStringsSep "\n"; };
    port = simple "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (v: isInt v && v >= 0 && v <= 65535);
    path = simple "absolute path" (v: (isPath v || isString v || isDerivation v) && hasPrefix "/" (toString v));
    externalPath = simple "absolute path not in the Nix store" (v:
      (isPath v || isString v) && hasPrefix "/" (toString v) && !hasPrefix storeDir (toString v));
    package = simple "package" isDerivation;
    strMatching = re: simple "string matching the pattern ${re}" (v: isString v && match re v != null);
    enum = values: simple "one of ${toJSON values}" (v: elem v values);
    nullOr = t: {
      description = "null or ${t.description}";
      check = v: v == null || t.check v;
      merge = loc: values: if all (v: v == null) values then null else merge loc t values;
    };
    either = a: b: {
      description = "${a.description} or ${b.description}";
      check = v: a.check v || b.check v;
      merge = loc: values: if all a.check values then a.merge loc values else merge loc b values;
    };
    oneOf = ts: foldl' types.either (head ts) (tail ts);
    listOf = t: {
      description = "list of ${t.description}";
      check = isList;
      merge = loc: values: map (v: merge loc t [ v ]) (concatLists values);
      emptyValue = [ ];
    };
    attrsOf = t: {
      description = "attribute set of ${t.description}";
      check = v: isPlain v || is "merge" v || is "if" v;
      merge = loc: values:
        let
          defs = concatMap pushDown values;
          names = unique (concatMap attrNames defs);
          given = n: map (d: d.${n}) (filter (hasAttr n) defs);
          live = filter (n: concatMap settle (given n) != [ ]) names;
        in
        genAttrs live (n: evalOption (loc ++ [ n ]) { type = t; } (given n));
      emptyValue = { };
    };
    submodule = m: {
      description = "submodule";
      check = v: isPlain v || isFunction v || is "merge" v || is "if" v;
      merge = loc: values: (evalModules {
        modules = (if isList m then m else [ m ]) ++ map (config: { inherit config; }) values;
        prefix = loc;
      }).config;
      emptyValue = { };
    };
  };

  filterAttrsRecursive = keep: set:
    listToAttrs (concatMap (name:
      let value = set.${name}; in
      if !keep name value then [ ]
      else [ { inherit name; value = if isPlain value then filterAttrsRecursive keep value else value; } ]
    ) (attrNames set));

  lib = rec {
    inherit evalModules types mkOption mkIf mkMerge mkOverride hasPrefix unique genAttrs isDerivation filterAttrsRecursive;
    inherit all any attrNames attrValues concatMap concatStringsSep elem filter head isString length mapAttrs match;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkEnableOption = what: mkOption { type = types.bool; default = false; description = "Whether to enable ${what}."; };
    mkPackageOption = pkgs: name: _: mkOption { type = types.package; default = pkgs.${name}; description = "The ${name} package to use."; };
    literalExpression = text: { _type = "literalExpression"; inherit text; };
    optional = condition: v: if condition then [ v ] else [ ];
    optionals = condition: vs: if condition then vs else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: s: if condition then s else "";
    hasInfix = infix: s: builtins.length (builtins.split (builtins.replaceStrings [ "." ] [ "\\." ] infix) s) > 1;
    removePrefix = p: s: if hasPrefix p s then substring (stringLength p) (-1) s else s;
    toList = v: if isList v then v else [ v ];
    mapAttrs' = f: set: listToAttrs (map (n: f n set.${n}) (attrNames set));
    nameValuePair = name: value: { inherit name value; };
    escapeShellArg = s: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString s)}'";
    getExe = p: "${p}/bin/${p.meta.mainProgram}";
    getExe' = p: name: "${p}/bin/${name}";
    fakeHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    licenses.asl20 = { spdxId = "Apache-2.0"; };
    platforms.linux = [ "x86_64-linux" "aarch64-linux" ];
    fileset = {
      unions = paths: assert all builtins.pathExists paths; paths;
      toSource = { root, fileset }: assert isList fileset; root;
    };
  };
in
lib
