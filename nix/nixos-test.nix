{ hubcacheModule }:
{
  name = "hubcache";
}
