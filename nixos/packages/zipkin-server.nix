# Zipkin. (nixpkgs' `zipkin` is version 1 of 2019, which speaks another protocol.) The file is what the project publishes:
# a jar with everything in it.
{
  lib,
  stdenvNoCC,
  fetchurl,
  jre_headless,
  makeWrapper,
}:
stdenvNoCC.mkDerivation (finalAttrs: {
  pname = "zipkin-server";
  version = "3.6.1";

  src = fetchurl {
    url = "mirror://maven/io/zipkin/zipkin-server/${finalAttrs.version}/zipkin-server-${finalAttrs.version}-exec.jar";
    hash = "sha256-2DJuDtT0OFXbqBIo9ohVRwblJXinx4LZqQtz+GgGVKE=";
  };
  dontUnpack = true;
  nativeBuildInputs = [ makeWrapper ];

  # JAVA_OPTS: flags of the virtual machine, such as -Xmx256m; the arguments are those of Zipkin
  installPhase = ''
    runHook preInstall
    install -Dm444 $src $out/share/zipkin-server/zipkin-server.jar
    makeWrapper ${lib.getExe' jre_headless "java"} $out/bin/zipkin-server \
      --add-flags "\$JAVA_OPTS -jar $out/share/zipkin-server/zipkin-server.jar"
    runHook postInstall
  '';

  meta = {
    description = "Collector, store and pages of distributed traces";
    homepage = "https://zipkin.io";
    license = lib.licenses.asl20;
    mainProgram = "zipkin-server";
    platforms = lib.platforms.linux;
    sourceProvenance = [ lib.sourceTypes.binaryBytecode ];
  };
})
